"""Both checkpoint formats, through transformers, through the llava package, and converted in memory."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import LlamaConfig

from lmms_textweighted.errors import CheckpointError, InputError, PromptError
from lmms_textweighted.families import LoadOptions, load
from lmms_textweighted.families.attach import prune
from lmms_textweighted.families.fingerprint import weights_fingerprint
from lmms_textweighted.families.liuhaotian import package as llava_loader
from lmms_textweighted.families.liuhaotian.checkpoint import is_liuhaotian, load_tokenizer
from lmms_textweighted.families.liuhaotian.convert import convert
from lmms_textweighted.families.liuhaotian.processing import TagProcessor
from lmms_textweighted.families.pieces import llava_pieces
from lmms_textweighted.inference import Decoding, PrunedLlava, StatedLengths
from lmms_textweighted.inference.context import context_limit
from lmms_textweighted.methods import make_plan
from lmms_textweighted.paths import checkpoint_folder
from lmms_textweighted.prompts import Message, render, user_message
from tests.checkpoints import make_checkpoint, make_tower

KINDS: dict[str, dict[str, Any]] = {
    "1.5": {},
    "1.5 with tokenizer.model": {"sentence_piece": True},
    "1.5 pickled": {"pickled": True},
    "1.6": {"anyres": True},
    "1.6 with its own tower": {"anyres": True, "tower_inside": True},
    "1.6 mistral": {"anyres": True, "architecture": "LlavaMistralForCausalLM"},
}
ROWS = 6


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng([seed, width, height]).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def conversations() -> list[list[Message]]:
    """One picture, another size, none, several apart, several touching each other, several of one size."""
    wide, tall, square, strip = picture(100, 60), picture(60, 200), picture(56, 56), picture(300, 50)
    return [
        [user_message("What is this ?\nA. red\nB. blue", [wide])],
        [user_message("the colour ?", [tall])],
        [user_message("What ?", [])],
        [user_message("What of <image> and <image> is this ?", [square, strip])],
        [user_message("red <image><image> blue", [wide, strip])],
        [user_message("green", [square, square])],
    ]


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tower(tmp_path_factory.mktemp("towers") / "clip")


@pytest.fixture(scope="module", params=KINDS, ids=str)
def checkpoint(request: pytest.FixtureRequest, tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / request.param.replace(" ", "-")
    return make_checkpoint(folder, tower=tower, **KINDS[request.param])


def loaded(path: Path, loader: str, strategy: str = "text_weighted", **plan: Any) -> PrunedLlava:
    model, processor = load(str(path), LoadOptions(loader=loader))
    kwargs = {"keep_tokens": 5, "pruning_layer": 1, **plan} if strategy != "none" else {}
    return PrunedLlava(model, processor, make_plan(strategy, **kwargs), template="vicuna_v1")


def outcomes(llava: PrunedLlava, batch: int) -> list[tuple[str, list[list[int]], int]]:
    """(answer, kept positions, tokens in) of every conversation."""
    asked = conversations()
    answers = []
    for start in range(0, len(asked), batch):
        answers += llava.generate(asked[start : start + batch], Decoding(max_new_tokens=5))
    return [(a.text, [stage.kept.tolist() for stage in a.trace.stages], a.input_tokens) for a in answers]


def prefill_logits(llava: PrunedLlava) -> torch.Tensor:
    """[rows, V] of each conversation alone, pruned; the rows of the image token are left out."""

    found = []
    for messages in conversations():
        encoded = llava.encode([messages])
        with torch.inference_mode(), prune(llava.model, llava.plan):
            found.append(llava.model(**encoded.inputs).logits[0, -1])
    return torch.stack(found)


@pytest.mark.parametrize("strategy", ["none", "text_weighted", "fastv", "random"])
def test_the_llava_package_and_the_conversion_in_memory_do_the_same(checkpoint: Path, strategy: str) -> None:
    package, converted = loaded(checkpoint, "llava", strategy), loaded(checkpoint, "hf", strategy)
    assert type(package.model).__name__ != type(converted.model).__name__
    assert outcomes(package, 1) == outcomes(converted, 1)
    ours, theirs = prefill_logits(converted), prefill_logits(package)
    rows = theirs.shape[1]
    torch.testing.assert_close(ours[:, :rows], theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("loader", ["llava", "hf"])
@pytest.mark.parametrize("strategy", ["none", "text_weighted"])
def test_a_padded_batch_equals_one_by_one(checkpoint: Path, loader: str, strategy: str) -> None:
    llava = loaded(checkpoint, loader, strategy)
    assert outcomes(llava, ROWS) == outcomes(llava, 1)
    assert outcomes(llava, 4) == outcomes(llava, 1)


def test_a_converted_checkpoint_does_what_its_source_does_also_after_the_way_back(
    checkpoint: Path, tmp_path: Path
) -> None:
    there = convert(str(checkpoint), tmp_path / "hf")
    back = convert(str(there.folder), tmp_path / "liuhaotian")
    assert (there.format, back.format) == ("transformers", "liuhaotian")
    assert there.tensors == back.tensors
    expected = outcomes(loaded(checkpoint, "hf"), 1)
    assert outcomes(loaded(there.folder, "auto"), 1) == expected
    assert outcomes(loaded(back.folder, "hf"), 1) == expected
    assert outcomes(loaded(back.folder, "llava"), 1) == expected


def test_all_formats_and_loaders_of_one_model_have_one_fingerprint(checkpoint: Path, tmp_path: Path) -> None:
    there = convert(str(checkpoint), tmp_path / "hf").folder
    back = convert(str(there), tmp_path / "liuhaotian").folder
    ways = [(checkpoint, "hf"), (checkpoint, "llava"), (there, "auto"), (back, "hf"), (back, "llava")]
    models = [load(str(path), LoadOptions(loader=loader))[0] for path, loader in ways]
    assert len({weights_fingerprint(model) for model in models}) == 1
    for name in ("embed_tokens.weight", "layers.4.mlp.down_proj.weight", "bias"):
        other = copy.deepcopy(models[0])
        value = next(value for key, value in other.state_dict().items() if key.endswith(name))
        value.view(-1)[0] += 1
        assert weights_fingerprint(other) != weights_fingerprint(models[0])


def test_input_ids_equal_those_of_the_llava_package(checkpoint: Path) -> None:
    from llava.conversation import conv_templates
    from llava.mm_utils import tokenizer_image_token

    llava = loaded(checkpoint, "llava")
    assert isinstance(llava.processor, TagProcessor)
    question = "What is this ?\nA. red\nB. blue"
    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message(conversation.roles[0], "<image>\n" + question)
    conversation.append_message(conversation.roles[1], None)
    expected = tokenizer_image_token(conversation.get_prompt(), llava.processor.tokenizer)
    found = llava.encode([[user_message(question, [picture(70, 40)])]]).inputs["input_ids"][0]
    assert found.tolist() == expected


def test_under_vicuna_v1_a_transformers_checkpoint_gets_the_llava_packages_tokens_too(
    checkpoint: Path, tmp_path: Path
) -> None:
    from llava.conversation import conv_templates
    from llava.mm_utils import tokenizer_image_token

    llava = loaded(convert(str(checkpoint), tmp_path / "hf").folder, "auto")
    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message(conversation.roles[0], "<image>\nWhat is this ?")
    conversation.append_message(conversation.roles[1], None)
    expected = tokenizer_image_token(conversation.get_prompt(), llava.processor.tokenizer)
    found = llava.encode([[user_message("What is this ?", [picture(70, 40)])]]).inputs["input_ids"][0].tolist()
    image = llava.model.config.image_token_id
    assert [i for i in found if i != image] == [i for i in expected if i != -200]
    assert found.index(image) == expected.index(-200)


@pytest.mark.parametrize("size", [(70, 40), (40, 200)])
def test_under_hf_a_transformers_checkpoint_gets_its_processors_own_tokens(
    checkpoint: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    model, processor = load(str(convert(str(checkpoint), tmp_path / "hf").folder))
    image, question = picture(*size), "What is this ?\nA. red"
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    expected = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )["input_ids"]
    llava = PrunedLlava(model, processor, template="hf")
    assert torch.equal(llava.encode([[user_message(question, [image])]]).inputs["input_ids"], expected)


def test_embeddings_equal_those_of_the_llava_packages_own_pipeline(checkpoint: Path) -> None:
    from llava.mm_utils import process_images

    llava = loaded(checkpoint, "llava")
    image = picture(130, 70)
    inputs = llava.encode([[user_message("What ?", [image])]]).inputs
    images = process_images([image], llava.model.get_vision_tower().image_processor, llava.model.config)
    splice = llava.model.prepare_inputs_labels_for_multimodal
    theirs = splice(inputs["input_ids"], None, None, None, None, images, image_sizes=[image.size])[4]
    ours = splice(inputs["input_ids"], None, None, None, None, inputs["images"], image_sizes=inputs["image_sizes"])[4]
    assert torch.equal(theirs, ours)


def test_the_loss_of_an_answer_is_the_same_in_both(checkpoint: Path) -> None:
    package, converted = loaded(checkpoint, "llava"), loaded(checkpoint, "hf")
    for messages in conversations():
        ours, theirs = converted.loss(messages, "red circle"), package.loss(messages, "red circle")
        assert ours[0] == pytest.approx(theirs[0], abs=1e-4)
        assert ours[1] == theirs[1]


# Defaults, detection and options.


def test_the_format_is_told_by_the_architecture_not_by_the_model_type(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["model_type"] == "llava"
    assert is_liuhaotian(config)
    hf_config = json.loads((checkpoint_folder() / "config.json").read_text())
    assert not is_liuhaotian(hf_config)


def test_pictures_are_prepared_as_the_checkpoints_config_says_unless_stated(tower: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower)
    for loader in ("llava", "hf"):
        model, processor = load(str(folder), LoadOptions(loader=loader))
        assert PrunedLlava(model, processor).image_aspect_ratio == "pad"
        stated = load(str(folder), LoadOptions(loader=loader, image_aspect_ratio="square"))
        assert PrunedLlava(*stated).image_aspect_ratio == "square"
        with pytest.raises(InputError, match="unknown image_aspect_ratio 'padd'"):
            load(str(folder), LoadOptions(loader=loader, image_aspect_ratio="padd"))
    with pytest.raises(InputError, match="takes pad or square"):
        load(str(folder), LoadOptions(loader="hf", image_aspect_ratio="anyres"))


def test_a_batch_can_ask_for_another_preparation(tower: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower)
    asked = [[user_message("What ?", [picture(100, 40)])]]
    for loader, key in (("llava", "images"), ("hf", "pixel_values")):
        llava = loaded(folder, loader)
        stated = PrunedLlava(*load(str(folder), LoadOptions(loader=loader, image_aspect_ratio="square")))
        padded, cropped = (llava.encode(asked, image_aspect_ratio=name).inputs[key] for name in (None, "square"))
        assert not torch.equal(padded, cropped)
        assert torch.equal(cropped, stated.encode(asked).inputs[key])


def test_the_template_suits_the_checkpoint(tower: Path, tmp_path: Path) -> None:
    llama = make_checkpoint(tmp_path / "llama", tower=tower)
    mistral = make_checkpoint(tmp_path / "mistral", tower=tower, architecture="LlavaMistralForCausalLM")
    for loader in ("llava", "hf"):
        assert PrunedLlava(*load(str(llama), LoadOptions(loader=loader))).template == "vicuna_v1"
        assert PrunedLlava(*load(str(mistral), LoadOptions(loader=loader))).template == "mistral_instruct"
    assert PrunedLlava(*load("tiny")).template == "vicuna_v1"


def test_a_converted_checkpoint_is_asked_as_its_source_is(checkpoint: Path, tmp_path: Path) -> None:
    question = [user_message("What ?", [picture(60, 60)])]
    sources = [PrunedLlava(*load(str(checkpoint), LoadOptions(loader=loader))) for loader in ("llava", "hf")]
    converted = PrunedLlava(*load(str(convert(str(checkpoint), tmp_path / "hf").folder)))
    assert {llava.template for llava in sources} == {converted.template}
    texts = [[i for i in llava.encode([question]).inputs["input_ids"][0].tolist() if i != -200] for llava in sources]
    image = converted.model.config.image_token_id
    found = converted.encode([question]).inputs["input_ids"][0].tolist()
    assert [i for i in found if i != image] == texts[0] == [i for i in texts[1] if i != image]


TEXT_ONLY = "{% for message in messages %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endfor %}"
STRICT = "{{ raise_exception('only text') }}"


@pytest.mark.parametrize(("architecture", "template"), [("LlavaMistralForCausalLM", "mistral_instruct")])
@pytest.mark.parametrize("own", [None, TEXT_ONLY, STRICT])
def test_a_text_models_chat_template_is_not_taken_over(
    tower: Path, tmp_path: Path, architecture: str, template: str, own: str | None
) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower, architecture=architecture)
    if own is not None:
        (folder / "chat_template.jinja").write_text(own)
    converted = PrunedLlava(*load(str(convert(str(folder), tmp_path / "hf").folder)))
    assert converted.template == template
    asked = [user_message("What ?\nA. red", [picture(60, 60)])]
    turns = [*asked, Message("assistant", (("text", "A"),)), user_message("And now ?", [])]
    for conversation in (asked, turns):
        assert render("hf", conversation, converted.processor) == render(template, conversation, None)


@pytest.mark.parametrize("loader", ["llava", "hf"])
def test_hf_in_liuhaotian_format_takes_a_text_models_template(tower: Path, tmp_path: Path, loader: str) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower)
    (folder / "chat_template.jinja").write_text(TEXT_ONLY)
    processor = load(str(folder), LoadOptions(loader=loader)).processor
    assert render("hf", [user_message("What ?", [picture(9, 9)])], processor) == "[INST] <image>\nWhat ? [/INST]"
    (folder / "chat_template.jinja").write_text(STRICT)
    processor = load(str(folder), LoadOptions(loader=loader)).processor
    with pytest.raises(InputError, match=r"chat template does not take this conversation \(only text\)"):
        render("hf", [user_message("What ?", [])], processor)


def test_a_task_may_change_the_preparation_only_within_what_a_checkpoint_was_made_for(
    tower: Path, tmp_path: Path
) -> None:
    flat = make_checkpoint(tmp_path / "flat", tower=tower)
    grid = make_checkpoint(tmp_path / "grid", tower=tower, anyres=True)
    for loader in ("llava", "hf"):
        assert [loaded(flat, loader).takes(name) for name in ("pad", "square", "anyres")] == [True, True, False]
        assert [loaded(grid, loader).takes(name) for name in ("pad", "square", "anyres")] == [False, False, True]
        with pytest.raises(InputError, match="image_aspect_ratio is 'anyres"):
            load(str(flat), LoadOptions(loader=loader, image_aspect_ratio="anyres"))
        with pytest.raises(InputError, match="image_aspect_ratio is 'anyres_max_9'"):
            load(str(grid), LoadOptions(loader=loader, image_aspect_ratio="anyres_max_9"))
    stated = PrunedLlava(*load(str(grid), LoadOptions(loader="llava", image_aspect_ratio="square")))
    encoded = stated.encode([[user_message("What ?", [picture(90, 40)])]])
    assert encoded.inputs["images"].shape[0] == 1  # the package's models could; whoever states it gets it


def test_every_loader_gives_the_stored_type_whatever_the_config_says(tower: Path, tmp_path: Path) -> None:
    from lmms_textweighted.families.weights import stored_dtype

    folder = make_checkpoint(
        tmp_path / "c", tower=tower, dtype=torch.bfloat16, config_changes={"torch_dtype": "float16"}
    )
    there = convert(str(folder), tmp_path / "hf").folder
    back = convert(str(there), tmp_path / "back").folder
    for place in (folder, there, back):
        assert stored_dtype(place) == torch.bfloat16
    for place in (there, back):
        config = json.loads((place / "config.json").read_text())
        assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize("loader", ["llava", "hf"])
def test_a_tower_without_its_picture_settings_is_named(tower: Path, tmp_path: Path, loader: str) -> None:
    bare = shutil.copytree(tower, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    folder = make_checkpoint(tmp_path / "c", tower=bare)
    with pytest.raises(CheckpointError, match=r"vision tower '.*bare' cannot be read"):
        load(str(folder), LoadOptions(loader=loader))
    with pytest.raises(CheckpointError, match=r"vision tower '.*bare' cannot be read"):
        convert(str(folder), tmp_path / "converted")


def test_vision_tower_points_to_another_folder(tower: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", tower="openai/clip-vit-large-patch14-336-not-here")
    for loader in ("llava", "hf"):
        with pytest.raises(CheckpointError, match="give vision_tower=FOLDER"):
            load(str(folder), LoadOptions(loader=loader))
        model, _ = load(str(folder), LoadOptions(loader=loader, vision_tower=str(tower)))
        assert model is not None
        with pytest.raises(CheckpointError, match="which is no folder"):
            load(str(folder), LoadOptions(loader=loader, vision_tower=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_the_type_is_the_checkpoints_own(tower: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    from lmms_textweighted.families.liuhaotian.checkpoint import convert_in_memory
    from lmms_textweighted.families.loading import read_config

    folder = make_checkpoint(tmp_path / "c", tower=tower, dtype=dtype, config_changes={"torch_dtype": "float32"})
    config = read_config("c", str(folder), "main")
    model, _, _ = convert_in_memory("c", folder, config, LoadOptions(device="cuda"))  # not placed: none is needed
    assert {value.dtype for value in model.parameters()} == {dtype}


def test_a_tower_may_lie_inside_the_checkpoint(tower: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", tower="vision_tower")
    shutil.copytree(tower, folder / "vision_tower")
    moved = folder.rename(tmp_path / "moved")
    assert outcomes(loaded(moved, "llava"), 1) == outcomes(loaded(moved, "hf"), 1)


def test_stated_lengths_are_checked_in_every_format(tower: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower)
    asked = [[user_message("What ?", [picture(60, 60)])]]
    for loader in ("llava", "hf"):
        llava = loaded(folder, loader)
        llava.stated = StatedLengths(system=32, image=16)
        llava.encode(asked)
        for wrong in (StatedLengths(system=35), StatedLengths(image=576)):
            llava.stated = wrong
            with pytest.raises(InputError, match="is stated as"):
                llava.encode(asked)


def test_without_the_package_a_checkpoint_is_converted_in_memory(
    tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower)
    expected = outcomes(loaded(folder, "auto"), 1)
    monkeypatch.setattr(llava_loader, "is_installed", lambda: False)
    with caplog.at_level(logging.WARNING):
        found = outcomes(loaded(folder, "auto"), 1)
    assert found == expected
    assert "converted in memory" in caplog.text
    assert "pip install --no-deps llava-torch" in caplog.text
    with pytest.raises(InputError, match="pip install --no-deps llava-torch"):
        loaded(folder, "llava")


def test_a_package_that_does_not_work_is_named_and_the_checkpoint_runs_without_it(
    tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower)
    expected = outcomes(loaded(folder, "hf"), 1)
    (tmp_path / "old" / "llava" / "model").mkdir(parents=True)
    (tmp_path / "old" / "llava" / "__init__.py").write_text("raise ImportError('cannot import name X\\nand more')")
    monkeypatch.syspath_prepend(str(tmp_path / "old"))
    for name in [name for name in sys.modules if name == "llava" or name.startswith("llava.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"no working LlavaLlamaForCausalLM .*\(cannot import name X\): loader=hf"):
        loaded(folder, "llava")
    with caplog.at_level(logging.WARNING):
        assert outcomes(loaded(folder, "auto"), 1) == expected
    assert "converted in memory: the installed llava package has no working" in caplog.text


def test_an_empty_placeholder_package_is_not_taken_for_the_real_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert llava_loader.is_installed()
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llava", raising=False)
    assert not llava_loader.is_installed()


def test_loader_and_format_must_fit() -> None:
    with pytest.raises(InputError, match="is in transformers' format"):
        load("tiny", LoadOptions(loader="llava"))
    with pytest.raises(InputError, match="unknown loader 'lava': did you mean 'llava'"):
        load("tiny", LoadOptions(loader="lava"))
    with pytest.raises(InputError, match="vision_tower is 'somewhere', which is for checkpoints in liuhaotian format"):
        load("tiny", LoadOptions(vision_tower="somewhere"))


# What a checkpoint must have.


def test_pickles_are_named_once_and_hold_nothing_but_tensors(
    tower: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_checkpoint(tmp_path / "pickled", tower=tower, pickled=True)
    for loader in ("llava", "hf"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="lmms_textweighted"):
            load(str(folder), LoadOptions(loader=loader))
        lines = [record for record in caplog.records if ".bin" in record.getMessage()]
        assert len(lines) == 1
        assert "\n" not in lines[0].getMessage()


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["BOMB"],)


@pytest.fixture
def bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that exists once a pickle was run."""
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    yield tmp_path / "exploded"
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("loader", ["llava", "hf"])
def test_a_pickle_that_runs_code_is_an_error_and_does_not_run(
    tower: Path, tmp_path: Path, bomb: Path, loader: str
) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower, pickled=True, shards=1)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({**weights, "more": _Bomb()}, folder / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(CheckpointError, match="cannot be") as caught:
        load(str(folder), LoadOptions(loader=loader))
    assert "False" not in str(caught.value)  # torch's own text says how to unpickle it all the same
    with pytest.raises(CheckpointError, match="cannot be"):
        convert(str(folder), tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_safetensors_go_before_pickles(tower: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower, shards=1)
    expected = outcomes(loaded(folder, "hf"), 1)
    (folder / "pytorch_model.bin").write_bytes(b"no weights at all")
    assert outcomes(loaded(folder, "hf"), 1) == expected
    assert outcomes(loaded(folder, "llava"), 1) == expected


@pytest.mark.parametrize("loader", ["llava", "hf"])
def test_missing_weights_are_an_error_not_random_numbers(tower: Path, tmp_path: Path, loader: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(tmp_path / "c", tower=tower, shards=1)
    weights = load_file(folder / "model.safetensors")
    del weights["model.mm_projector.2.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks the weights"):
        load(str(folder), LoadOptions(loader=loader))


@pytest.mark.parametrize("loader", ["llava", "hf"])
def test_a_missing_file_is_named(tower: Path, tmp_path: Path, loader: str) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower, shards=2)
    gone = sorted(folder.glob("model-*.safetensors"))[0]
    gone.unlink()
    with pytest.raises(CheckpointError, match=gone.name):
        load(str(folder), LoadOptions(loader=loader))


@pytest.mark.parametrize("index", ["{bad", "{}", '{"weight_map": 3}', "[]"])
def test_an_index_that_is_none_is_named(tower: Path, tmp_path: Path, index: str) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower, shards=2)
    (folder / "model.safetensors.index.json").write_text(index)
    for loader in ("llava", "hf"):
        with pytest.raises(CheckpointError, match=r"model.safetensors.index.json' cannot be read"):
            load(str(folder), LoadOptions(loader=loader))


def test_a_grid_that_is_none_is_named(tower: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(
        tmp_path / "c", tower=tower, anyres=True, config_changes={"image_grid_pinpoints": "[(56,112"}
    )
    for loader in ("llava", "hf"):
        with pytest.raises(CheckpointError, match=r"image_grid_pinpoints='\[\(56,112'"):
            load(str(folder), LoadOptions(loader=loader))


def test_a_tower_of_another_width_is_refused(tower: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower, config_changes={"mm_hidden_size": 1024})
    for loader in ("llava", "hf"):
        with pytest.raises(CheckpointError, match="is 16 wide, but the checkpoint's mm_hidden_size is 1024"):
            load(str(folder), LoadOptions(loader=loader))


def test_tags_around_pictures_are_refused_by_the_package_too(tower: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower, config_changes={"mm_use_im_start_end": True})
    with pytest.raises(CheckpointError, match="mm_use_im_start_end=True"):
        load(str(folder), LoadOptions(loader="llava"))


def test_everybody_may_read_what_was_converted(tower: Path, tmp_path: Path) -> None:
    done = convert(str(make_checkpoint(tmp_path / "c", tower=tower)), tmp_path / "converted")
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in done.folder.rglob("*"))


@pytest.mark.parametrize("loader", ["llava", "hf"])
def test_what_the_processor_gives_is_what_generate_takes(tower: Path, tmp_path: Path, loader: str) -> None:
    """README's "In Python", with one picture and keyword arguments alone, whatever the format."""
    model, processor = load(str(make_checkpoint(tmp_path / "c", tower=tower)), LoadOptions(loader=loader))
    inputs = processor(images=picture(60, 60), text="USER: <image>\nWhat ? ASSISTANT:", return_tensors="pt")
    with prune(model, make_plan(keep_tokens=4)) as trace:
        output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert trace.documents[0].kept_tokens == 4
    new = output[0] if loader == "llava" else output[0, inputs["input_ids"].shape[1] :]
    assert 1 <= len(new) <= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type='linear'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end=True"),
        ({"mm_patch_merge_type": "spatial"}, "mm_patch_merge_type='spatial'"),
        ({"architectures": ["LlavaMptForCausalLM"]}, "architectures='LlavaMptForCausalLM'"),
    ],
)
def test_what_transformers_cannot_express_is_refused_by_name(
    tower: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower, config_changes=change)
    with pytest.raises(CheckpointError, match=message):
        load(str(folder), LoadOptions(loader="hf"))
    with pytest.raises(CheckpointError, match=message):
        convert(str(folder), tmp_path / "converted")


@pytest.mark.parametrize(("key", "limit"), [("tokenizer_model_max_length", 40), ("max_position_embeddings", 41)])
def test_a_prompt_longer_than_the_context_is_an_error_in_every_loader(
    tower: Path, tmp_path: Path, key: str, limit: int
) -> None:
    """The image's tokens are counted, although the package has one tag for them."""
    folder = make_checkpoint(tmp_path / "c", tower=tower, config_changes={key: limit})
    convert(str(folder), tmp_path / "converted")
    convert(str(tmp_path / "converted"), tmp_path / "back")
    said = set()
    for path, loader in (("c", "llava"), ("c", "hf"), ("converted", "hf"), ("back", "llava")):
        with pytest.raises(PromptError, match=f"but the model was made for {limit}: shorten it") as refused:
            outcomes(loaded(tmp_path / path, loader), 1)
        said.add(str(refused.value))
    assert len(said) == 1


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default"}, 1024),
        ({"rope_type": "linear", "factor": 4.0}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}, 1024),
    ],
)
def test_stretched_phases_have_a_longer_context(rope: dict[str, Any], limit: int) -> None:
    config = LlamaConfig(max_position_embeddings=1024)
    config.rope_parameters = {"rope_theta": 10000.0, **rope}
    assert context_limit(config) == limit
    config.tokenizer_model_max_length = 1000
    assert context_limit(config) == 1000


@pytest.mark.parametrize("name", ["../c/model.safetensors", "/etc/hosts", "sub/model.safetensors"])
def test_an_index_names_files_beside_it_only(tower: Path, tmp_path: Path, name: str) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower, shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    for loader in ("llava", "hf"):
        with pytest.raises(CheckpointError, match="which is not beside it"):
            load(str(folder), LoadOptions(loader=loader))


# Tokenizers.


@pytest.fixture(scope="module")
def pieces_tokenizer(tower: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(the loader's tokenizer, the sentencepiece model itself) of a checkpoint with a tokenizer.model alone."""
    folder = make_checkpoint(tmp_path_factory.mktemp("pieces") / "c", tower=tower, sentence_piece=True)
    return load_tokenizer(folder), sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@given(
    st.lists(
        st.sampled_from(["", "What", "is", "\n", "red", "A.", "?", "é", "汉", "\t", "USER:", "<image>"]), max_size=8
    )
)
def test_a_tokenizer_model_gives_the_tokens_that_sentencepiece_gives(
    pieces_tokenizer: tuple[Any, Any], words: list[str]
) -> None:
    tokenizer, pieces = pieces_tokenizer
    first, *rest = " ".join(words).split("<image>")
    expected = [pieces.bos_id(), *pieces.encode(first)]
    for piece in rest:
        expected += [-200, *pieces.encode(piece)]
    assert llava_pieces(tokenizer, " ".join(words))[0] == expected


def test_ranges_of_characters_are_those_of_the_text_also_behind_a_space(pieces_tokenizer: tuple[Any, Any]) -> None:
    tokenizer, _ = pieces_tokenizer
    prompt = "What <image> is red"
    ids, spans = llava_pieces(tokenizer, prompt, offsets=True)
    behind = [
        prompt[start:end].strip() for i, (start, end) in zip(ids, spans, strict=True) if start >= 12 and i != -200
    ]
    assert "".join(behind) == "isred"


def test_a_checkpoint_without_a_tokenizer_is_an_error(tower: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", tower=tower, sentence_piece=True)
    (folder / "tokenizer.model").unlink()
    for loader in ("llava", "hf"):
        with pytest.raises(CheckpointError, match="has no tokenizer"):
            load(str(folder), LoadOptions(loader=loader))
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        convert(str(folder), tmp_path / "converted")


def test_line_breaks_behind_a_picture_are_kept(pieces_tokenizer: tuple[Any, Any]) -> None:
    tokenizer, pieces = pieces_tokenizer
    ids, spans = llava_pieces(tokenizer, "USER: <image>\nred", offsets=True)
    tail = pieces.encode("\nred")
    assert ids[-len(tail) :] == tail
    assert pieces.piece_to_id("<0x0A>") in tail
    assert ids[-len(tail) - 1] == -200
    assert [span for place, span in zip(ids, spans, strict=True) if place == -200] == [(6, 13)]


# The embedded model, which both formats must agree on.


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PrunedLlava]:
    folder = convert("tiny", tmp_path_factory.mktemp("embedded") / "liuhaotian").folder
    return {
        "transformers": PrunedLlava(*load("tiny")),
        "llava": PrunedLlava(*load(str(folder), LoadOptions(loader="llava"))),
        "in memory": PrunedLlava(*load(str(folder), LoadOptions(loader="hf"))),
    }


@pytest.mark.parametrize("strategy", ["none", "text_weighted", "fastv", "random"])
def test_the_embedded_model_is_the_same_in_both_formats(embedded: dict[str, PrunedLlava], strategy: str) -> None:

    from lmms_textweighted.tiny.testset import load_testset

    assert len({weights_fingerprint(llava.model) for llava in embedded.values()}) == 1
    documents = load_testset().select(range(0, 40, 5))
    plan = make_plan(strategy, keep_tokens=None if strategy == "none" else 48)
    expected: list[Any] = []
    for name, llava in embedded.items():
        for number, document in enumerate(documents):
            message = user_message(document["question"], [document["image"].convert("RGB")])
            encoded = llava.encode([[message]])
            with torch.inference_mode(), prune(llava.model, plan) as trace:
                logits = llava.model(**encoded.inputs).logits[0, -1]
            kept = [stage.kept.tolist() for stage in trace.documents[0].stages]
            if name == "transformers":
                expected.append((logits, kept))
                continue
            torch.testing.assert_close(logits, expected[number][0], atol=1e-4, rtol=0)
            assert kept == expected[number][1]
