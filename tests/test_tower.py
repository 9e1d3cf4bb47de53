"""What a plan sees of the vision tower, against the tower written out in float64, and where it is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from lmms_textweighted import prune
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.engine.scoring import Rows, Scorer, Seen
from lmms_textweighted.engine.tower import FEATURES, TowerLayer, TowerReads
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods import make_plan
from tests.conftest import IMAGE, IMAGE_TOKEN, VOCABULARY, build_anyres, build_llava, fill_weights, make_inputs, one_row
from tests.replay import tower_of
from tests.vlms import inputs_of, model_of

EARLY, LAST = TowerLayer(8, 24), TowerLayer(1)


@dataclass(frozen=True)
class Looks(Scorer):
    """Keeps the first tokens, and for the test what it was shown."""

    reads_tower: TowerReads
    shown: list[Any] = field(default_factory=list, compare=False)
    name: str = "looks"
    reads: Rows = Rows.NONE

    @property
    def tower_reads(self) -> TowerReads:
        return self.reads_tower

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        self.shown.append(seen.tower)
        scores = -torch.arange(len(seen.image)).float()
        return scores, scores[:0]


ALL = TowerReads((FEATURES, EARLY), (LAST,), (EARLY, FEATURES), (FEATURES,), vectors=True, class_vector=True)


def plan_of(scorer: Scorer, layer: int = -1, keep: int = 5) -> Plan:
    return Plan("a plan", (Stage(scorer, layer, keep_tokens=keep),))


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_rows_means_keys_and_vectors_are_those_of_the_towers_own_attention(attn):
    model = build_llava(attn=attn, tower_layers=6)
    inputs = make_inputs(model, [(3, IMAGE, 2, IMAGE, 4), (2,), (IMAGE, 3)], seed=1)
    ran: list[int] = []
    layers = model.model.vision_tower.encoder.layers
    handles = [layer.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, layer in enumerate(layers)]
    scorer = Looks(ALL)
    with prune(model, plan_of(scorer)):
        model(**inputs)
    assert ran == list(range(6))  # once each
    for handle in handles:
        handle.remove()
    for row, seen in zip((0, 2), scorer.shown, strict=True):
        expected = tower_of(model, one_row(model, inputs, row))
        pictures = range(len(expected.keys[0]))
        early, feature = 1, 4
        close = lambda found, parts: np.testing.assert_allclose(found.numpy(), np.concatenate(parts), atol=1e-5)  # noqa: E731
        for layer, number in ((FEATURES, feature), (EARLY, early)):
            close(seen.class_row(layer), [expected.class_scores(p, number) for p in pictures])
            close(seen.column_mean(layer), [expected.attention[number][p].mean((0, 1))[1:] for p in pictures])
        close(seen.wide_class_row(LAST), [expected.wide_scores(p, 5) for p in pictures])
        close(seen.keys(), [expected.keys[feature][p][:, 1:].swapaxes(0, 1) for p in pictures])
        close(seen.vectors, [expected.features(p) for p in pictures])
        last = seen.class_vector(torch.tensor([len(seen.index) - 1]))
        close(last, [expected.outputs[feature][-1][:1]])


def test_a_stage_later_in_the_model_sees_the_tokens_that_are_left():
    model = build_llava(tower_layers=4)
    inputs = make_inputs(model, [(3, IMAGE, 4)], seed=1)
    first, second = Looks(TowerReads(class_rows=(FEATURES,))), Looks(TowerReads(vectors=True))
    plan = Plan("two", (Stage(make_plan("fastervlm").stages[0].scorer, 1, 6), Stage(first, 2, 4), Stage(second, 3, 2)))
    with prune(model, plan) as trace:
        model(**inputs)
    kept = trace.documents[0].stages[0].kept - 3
    expected = np.array(tower_of(model, inputs).class_scores(0))
    assert kept.tolist() == sorted(np.argsort(-expected)[:6])
    np.testing.assert_allclose(first.shown[0].class_row().numpy(), expected[kept], atol=1e-6)
    assert second.shown[0].index.tolist() == kept[:4].tolist()


def test_generate_beam_search_and_a_call_after_a_failed_one_choose_as_one_forward_does():
    model = build_llava()
    inputs = make_inputs(model, [(3, IMAGE, 2, IMAGE, 4), (2,), (IMAGE, 3)], seed=2)
    with prune(model, make_plan("fastervlm", keep_tokens=4)) as trace:
        model(**inputs)
        kept = [stage.kept.tolist() for document in trace.documents for stage in document.stages]
        for beams in (1, 2):
            with pytest.raises(ValueError, match="image"):  # the tower has run by then
                model.generate(**{**inputs, "pixel_values": inputs["pixel_values"][:1]}, max_new_tokens=1)
            trace.documents.clear()
            model.generate(**inputs, max_new_tokens=2, num_beams=beams)
            found = [document.stages[0].kept.tolist() for document in trace.documents]
            assert found == [row for row in kept for _ in range(beams)]


def test_the_tower_is_as_before_on_leaving():
    model = build_llava()
    layer = model.model.vision_tower.encoder.layers[0]
    config, hooks = layer.self_attn.config, dict(layer._forward_hooks)
    with pytest.raises(RuntimeError), prune(model, make_plan("visionzip", keep_tokens=4)):
        raise RuntimeError
    assert layer.self_attn.config is config
    assert dict(layer._forward_hooks) == hooks
    assert "generate" not in vars(model)


def siglip_llava() -> Any:
    config = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        ),
        vision_config=SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
            vision_use_head=False,
        ),
        vision_feature_select_strategy="full",
        image_token_id=IMAGE_TOKEN,
        image_seq_length=16,
    )
    model = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    fill_weights(model, 0)
    return model


def test_a_tower_without_a_class_token_is_looked_at_where_none_is_needed():
    model = siglip_llava()
    inputs = make_inputs(model, [(3, IMAGE, 4)])
    scorer = Looks(TowerReads(column_means=(FEATURES,), vectors=True))
    with prune(model, plan_of(scorer)) as trace:
        model(**inputs)
    assert trace.documents[0].image_lengths[0] == 5
    (seen,) = scorer.shown
    assert seen.vectors.shape == (16, 16)
    torch.testing.assert_close(seen.column_mean(FEATURES).sum(), torch.tensor(1.0))


def refusal(model: Any, name: str, **plan: Any) -> str:
    with pytest.raises(PlanError) as said, prune(model, make_plan(name, keep_tokens=4, **plan)):
        pass
    assert "\n" not in str(said.value)
    return str(said.value)


def test_a_method_that_needs_a_class_token_is_refused_where_there_is_none():
    for model, tower in ((siglip_llava(), "SiglipVisionModel"), (model_of("qwen2_vl"), "Qwen2Vision")):
        for name in ("fastervlm", "visionzip", "vispruner"):
            said = refusal(model, name)
            assert said.startswith(f"{name} reads the class token of the vision tower, but {tower}")
            assert said.endswith("has none: use a method that needs none")


def test_a_tower_whose_patches_are_no_image_tokens_is_refused():
    assert "but of InternVLVisionModel in a InternVLFor" in refusal(model_of("internvl"), "fastervlm")
    assert "but of SiglipVisionModel in a LlavaOnevisionFor" in refusal(build_anyres("llava_onevision"), "hiprune")
    whole = build_llava()
    whole.config.vision_feature_select_strategy = "full"
    assert "but of CLIPVisionModel in a LlavaFor" in refusal(whole, "fastervlm")


def test_features_that_were_made_outside_are_refused():
    model = build_llava()
    inputs = make_inputs(model, [(3, IMAGE, 4)])
    made = model.get_image_features(inputs["pixel_values"], return_dict=True)
    given = {key: value for key, value in inputs.items() if key != "pixel_values"}
    with (
        prune(model, make_plan("fastervlm", keep_tokens=4)),
        pytest.raises(PlanError, match="which ran on 0 pictures for prompts with 1: let the model make the features"),
    ):
        model(**given, mm_encoder_outputs={"image": made})


def test_a_method_that_looks_at_embeddings_alone_is_for_every_model():
    model = model_of("qwen2_vl")
    inputs = inputs_of("qwen2_vl", [(7, model_pictures()[0], 6)])
    with prune(model, make_plan("divprune", keep_tokens=4)) as trace:
        model(**inputs)
    assert trace.documents[0].image_lengths[0] == 4


def model_pictures() -> Any:
    from tests.vlms import MODELS

    return MODELS["qwen2_vl"].pictures


def test_what_is_read_of_a_layer_does_not_change_what_else_is_read_of_it():
    """The wide row has a scaling of its own, which is not that of the same layer's columns or class row."""
    model = build_llava(image_size=56, tower_layers=4)
    inputs = make_inputs(model, [(3, IMAGE, 4)], seed=3)

    def shown(reads: TowerReads):
        scorer = Looks(reads, [])
        with prune(model, plan_of(scorer, keep=3)):
            model(**inputs)
        return scorer.shown[0].found

    together = shown(TowerReads(wide_class_rows=(LAST,), column_means=(LAST, FEATURES), class_rows=(LAST,)))
    alone = [TowerReads(wide_class_rows=(LAST,)), TowerReads(column_means=(LAST,)), TowerReads(class_rows=(LAST,))]
    for reads in alone:
        assert all(torch.equal(value, together[key]) for key, value in shown(reads).items())
