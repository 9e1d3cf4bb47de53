"""The registered model, in process: settings, errors, prompts, loss, and lmms-eval's own llava_hf as a reference."""

from __future__ import annotations

import json

import pytest
import torch
from lmms_eval.api.instance import Instance

from lmms_textweighted.harness.generation import split_generation_kwargs
from lmms_textweighted.harness.model import LlavaTextweighted, LlavaTextweightedChat
from lmms_textweighted.harness.stops import RunEnded
from lmms_textweighted.paths import checkpoint_folder
from lmms_textweighted.tiny.testset import load_testset


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMS_TEXTWEIGHTED_CACHE", str(tmp_path / "textweighted"))
    monkeypatch.setattr("sys.argv", ["lmms-eval"])


@pytest.fixture(scope="session")
def documents():
    return load_testset().select(range(100))


def prompt_of(document):
    letters = "ABCDE"
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, document["choices"], strict=False))
    context = f"Context: {document['hint']}\n" if document["hint"] else ""
    return (
        f"{context}{document['question']}\n{choices}\nAnswer with the option's letter from the given choices directly."
    )


def ask(model, documents, kwargs=None, visuals=None):
    """Give a model generate_until requests as lmms-eval would, in the form its interface takes."""
    kwargs = {"max_new_tokens": 8, "temperature": 0, "do_sample": False} if kwargs is None else kwargs
    visuals = visuals or (lambda document: [document["image"].convert("RGB")])
    model.task_dict = {"shapes": {"test": documents}}

    def messages(document):
        pieces = [{"type": "image", "url": image} for image in visuals(document)]
        return [{"role": "user", "content": [*pieces, {"type": "text", "text": prompt_of(document)}]}]

    requests = []
    for number, document in enumerate(documents):
        text = prompt_of(document)
        arguments = (
            (text, kwargs, visuals, number, "shapes", "test")
            if model.is_simple
            else (text, messages, kwargs, number, "shapes", "test")
        )
        metadata = {"task": "shapes", "doc_id": number, "repeats": 1}
        requests.append(Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata))
    return list(model.generate_until(requests))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"keep_tokens": 577}, "keep_tokens is 577, but the image has 576 tokens"),
        ({"equivalent_tokens": 100}, "cannot go below a mean of 216 of 576 tokens, but equivalent_tokens is 100"),
        ({"equivalent_tokens": 600}, "cannot go above a mean of 576 of 576 tokens"),
        ({"flops_ratio": 1.5}, "flops_ratio is 1.5: give a number above 0 and at most 1"),
        ({"flops_ratio": 0.5, "keep_tokens": 64}, "keep_tokens is 64 and flops_ratio is 0.5: give exactly one of them"),
        ({"strategy": "fastv_k2_mean192"}, "is a setting for 32 decoder layers, but the model has 8: use fastv_k2"),
        ({"strategy": "fastv_k2_mean192", "keep_tokens": 9}, "keep_tokens is 9, but fastv_k2_mean192 states its own"),
        ({"strategy": "nowhere.yaml"}, "plan 'nowhere.yaml' cannot be read (No such file"),
        ({"keep_tokens": -3}, "keep_tokens is -3"),
        ({"keep_tokens": 12.5}, "keep_tokens is 12.5"),
        ({"keep_ratio": 0}, "keep_ratio is 0: give a number above 0 and at most 1"),
        ({"keep_ratio": 1.5}, "keep_ratio is 1.5"),
        ({"keep_ratio": 0.5, "keep_tokens": 64}, "give exactly one of them"),
        ({"pruning_layer": 8}, "pruning layer is 8, but the model has 8 decoder layers"),
        ({"pruning_layer": -1}, "pruning layer is -1"),
        ({"strategy": "text_weigted"}, "did you mean 'text_weighted'?"),
        ({"strategy": "fastv_k2", "pruning_layer": 3}, "fastv_k2 prunes after layer 1"),
        ({"conv_template": "vicuna"}, "did you mean 'vicuna_v1'?"),
        ({"keep_token": 64}, "unknown model argument 'keep_token': did you mean 'keep_tokens'?"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"attn_implementation": "flex_attention"}, "attn_implementation is 'flex_attention': give sdpa, eager or"),
        ({"batch_size": "auto"}, "batch_size is 'auto'"),
        ({"pretrained": "./nowhere"}, "checkpoint folder './nowhere' does not exist"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
    ],
)
def test_arguments_that_cannot_be_end_the_run_with_one_line(arguments, words):
    with pytest.raises(RunEnded) as ended:
        LlavaTextweighted(**{"pretrained": "tiny", **arguments})
    message = str(ended.value)
    assert words in message
    assert "\n" not in message
    assert isinstance(ended.value, SystemExit)


def test_a_folder_that_is_no_llava_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(RunEnded, match=r"is no LLaVA.* 'gpt2'"):
        LlavaTextweighted(pretrained=str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunEnded, match="is no LLaVA"):
        LlavaTextweighted(pretrained=str(tmp_path))


def test_without_the_hub_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RunEnded, match=r"not on disk and the hub did not give it.*pretrained=tiny"):
        LlavaTextweighted(pretrained="llava-hf/llava-1.5-7b-hf-that-is-not-there")


def test_defaults_are_spelled_out_in_every_answer(documents):
    model = LlavaTextweighted(pretrained="tiny")
    answer = ask(model, documents.select([0]))[0]
    settings = answer.token_counts.to_dict()["settings"]
    assert settings["stages"] == [
        {"scorer": "text_weighted", "scored_at": 2, "leave_after": 2, "keep_tokens": 192, "keep_ratio": None}
    ]
    assert (settings["conv_template"], settings["dtype"], settings["device"]) == ("vicuna_v1", "float32", "cpu")


def test_batches_and_both_interfaces_answer_alike(documents):
    some = documents.select(range(12))
    single = ask(LlavaTextweighted(pretrained="tiny", keep_tokens=48), some)
    batched = ask(LlavaTextweighted(pretrained="tiny", keep_tokens=48, batch_size="5"), some)
    chat = ask(LlavaTextweightedChat(pretrained="tiny", keep_tokens=48, batch_size="5"), some)
    for one, other, third in zip(single, batched, chat, strict=True):
        assert one.text == other.text == third.text
        kept = [result.token_counts.to_dict()["kept_positions"] for result in (one, other, third)]
        assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize(
    "arguments", [{"attn_implementation": "eager"}, {"device_map": "auto"}, {"keep_tokens": None, "keep_ratio": 1 / 9}]
)
def test_ways_of_loading_and_of_saying_a_budget_agree(documents, arguments):
    some = documents.select(range(3))
    plain = ask(LlavaTextweighted(pretrained="tiny", keep_tokens=64), some)
    other = ask(LlavaTextweighted(**{"pretrained": "tiny", "keep_tokens": 64, **arguments}), some)
    for one, two in zip(plain, other, strict=True):
        assert one.text == two.text
        kept = [result.token_counts.to_dict()["kept_positions"] for result in (one, two)]
        assert kept[0] == kept[1]


def test_bfloat16_runs_and_is_noted(documents):
    answer = ask(LlavaTextweighted(pretrained="tiny", dtype="bfloat16"), documents.select([0]))[0]
    assert answer.text in "ABCDE"
    assert answer.token_counts.to_dict()["settings"]["dtype"] == "bfloat16"
    assert answer.token_counts.to_dict()["kv_bytes"] == 2 * 128 * 2 * sum(answer.token_counts.to_dict()["lengths"])


def test_generation_kwargs_are_never_changed(documents):
    kwargs = {"max_new_tokens": 4, "until": ["\n"], "temperature": 0, "image_aspect_ratio": "pad"}
    before = json.dumps(kwargs)
    ask(LlavaTextweighted(pretrained="tiny"), documents.select([0]), kwargs)
    assert json.dumps(kwargs) == before


def test_generation_kwargs_decide_how_to_decode():
    decoding, ranks = split_generation_kwargs(
        {"max_new_tokens": 5, "temperature": 0.7, "do_sample": False, "until": "x", "ranks": True}
    )
    assert (decoding.max_new_tokens, decoding.temperature, decoding.until, ranks) == (5, 0.0, ("x",), True)
    decoding, ranks = split_generation_kwargs({"temperature": 0.7, "num_beams": 2})
    assert (decoding.temperature, decoding.num_beams, ranks) == (0.7, 2, False)


def test_answers_stream_in_request_order(documents):
    """lmms-eval's cache stores each answer as it comes; a run killed halfway keeps what it has."""
    model = LlavaTextweighted(pretrained="tiny", keep_tokens=16)
    some = documents.select(range(3))
    stream = []
    original = model.llava.generate
    model.llava.generate = lambda *a, **k: (stream.append(len(stream)), original(*a, **k))[1]
    model.task_dict = {"shapes": {"test": some}}
    requests = [
        Instance(
            request_type="generate_until",
            arguments=(prompt_of(d), {"max_new_tokens": 2}, lambda d: [d["image"]], n, "shapes", "test"),
            idx=0,
            metadata={"task": "shapes", "doc_id": n, "repeats": 1},
        )
        for n, d in enumerate(some)
    ]
    answers = model.generate_until(requests)
    assert len(answers) == 3
    next(iter(answers))
    assert len(stream) == 1
    assert answers[2].text == list(answers)[2].text
    assert len(stream) == 3


def test_a_document_that_fails_ends_the_run_and_is_named(documents):
    model = LlavaTextweighted(pretrained="tiny")
    with pytest.raises(RunEnded, match=r"task shapes, document 0: a visual is 'clip\.mp4': give pictures"):
        ask(model, documents.select([0]), visuals=lambda document: ["clip.mp4"])

    def broken(*arguments, **kwargs):
        raise RuntimeError("kernel failed\nand more")

    model.llava.generate = broken
    with pytest.raises(RunEnded, match=r"^lmms-textweighted: task shapes, document 0: RuntimeError: kernel failed$"):
        ask(model, documents.select([0]))


@pytest.mark.parametrize("kind", [LlavaTextweighted, LlavaTextweightedChat])
def test_a_document_longer_than_the_context_is_named_out_of_its_batch(documents, kind):
    def longer(document, number):
        return {"question": document["question"] + " red" * (2000 if number == 1 else 0)}

    model = kind(pretrained="tiny", batch_size=2)
    some = documents.select(range(2)).map(longer, with_indices=True)
    words = (
        r"task shapes, document 1: the prompt has \d{4} tokens, 576 of them the pictures', .* made for 2048: shorten"
    )
    with pytest.raises(RunEnded, match=words):
        ask(model, some)


def test_the_loss_is_that_of_the_unpruned_model_when_all_is_kept(documents):
    """loglikelihood against transformers' own labels path, and pruned against nothing removed."""
    model = LlavaTextweighted(pretrained="tiny", strategy="none")
    some = documents.select(range(3))
    model.task_dict = {"shapes": {"test": some}}
    losses = {}
    for strategy in ("none", "text_weighted"):
        model.llava.plan = LlavaTextweighted(pretrained="tiny", strategy=strategy, keep_tokens=24).llava.plan
        requests = [
            Instance(
                request_type="loglikelihood",
                arguments=(prompt_of(d), letter, lambda d: [d["image"]], n, "shapes", "test"),
                idx=0,
                metadata={"task": "shapes", "doc_id": n, "repeats": 1},
            )
            for n, d in enumerate(some)
            for letter in "AB"
        ]
        losses[strategy] = [result.text for result in model.loglikelihood(requests)]
    assert losses["none"] != losses["text_weighted"]
    loss, greedy = losses["none"][0]
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt_of(some[0])}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A"}]}
    text = model.llava.processor.apply_chat_template([question, answer])
    inputs = model.llava.processor(images=[some[0]["image"]], text=text, return_tensors="pt")
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    expected = model.llava.model(**inputs, labels=labels)
    assert loss == pytest.approx(expected.loss.item(), abs=1e-4)
    assert greedy == bool((expected.logits[0, -3:-1].argmax(-1) == inputs["input_ids"][0, -2:]).all())


def key_of(ids, pixels):
    """Input ids and pixel values, bit for bit."""
    return tuple(ids.tolist()), pixels.numpy().tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("count", [24, pytest.param(100, marks=pytest.mark.nightly)])
def test_unpruned_it_equals_lmms_evals_own_llava_hf(documents, monkeypatch, count):
    """Input ids, pixel values, first-token logits (1e-5) and answers, batch 8 against batch 1."""
    documents = documents.select(range(count))
    from lmms_eval.models.chat.llava_hf import LlavaHf

    theirs = LlavaHf(pretrained=str(checkpoint_folder()), device="cpu", device_map="cpu", dtype="float32")
    ours = LlavaTextweightedChat(pretrained="tiny", strategy="none", conv_template="hf", batch_size=8)
    seen = {"theirs": [], "ours": []}

    def recording(name, generate):
        def wrapped(*args, **kwargs):
            given = {"input_ids": args[0], **kwargs} if args else kwargs
            seen[name].append({key: given[key] for key in ("input_ids", "attention_mask", "pixel_values")})
            return generate(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(theirs.model, "generate", recording("theirs", theirs.model.generate))
    reference = ask(theirs, documents, {"max_new_tokens": 8, "temperature": 0})
    monkeypatch.undo()
    monkeypatch.setattr(ours.llava.model, "generate", recording("ours", ours.llava.model.generate))
    mine = ask(ours, documents)
    monkeypatch.undo()
    assert [answer.text for answer in mine] == [answer.text.strip() for answer in reference]

    rows = [
        {"ids": ids[mask.bool()], "pixels": pixels, "inputs": batch, "row": row}
        for batch in seen["ours"]
        for row, (ids, mask, pixels) in enumerate(
            zip(batch["input_ids"], batch["attention_mask"], batch["pixel_values"], strict=True)
        )
    ]
    assert len(rows) == len(seen["theirs"]) == count
    logits = [
        row for batch in seen["ours"] for row in ours.llava.model(**batch, logits_to_keep=1).logits[:, -1].detach()
    ]
    # Requests of like length share a batch, so the two orders differ.
    same = {key_of(their["input_ids"][0], their["pixel_values"][0]): their for their in seen["theirs"]}
    assert len(same) == count
    for row, my_logits in zip(rows, logits, strict=True):
        their = same.pop(key_of(row["ids"], row["pixels"]))
        their_logits = theirs.model(**their, logits_to_keep=1).logits[0, -1]
        assert torch.allclose(my_logits, their_logits, atol=1e-5 * float(their_logits.abs().max()))
