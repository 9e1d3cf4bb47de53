"""Unpruned, every kind gives what lmms-eval's own model of it gives: ids, pixels, first-token logits and answers.

Tiny checkpoints with the real processor classes; 60 documents, odd sizes, transparent pictures and several of them
among them; ours in batches of 4, theirs one by one.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from lmms_eval.api.instance import Instance
from PIL import Image
from transformers import AutoModelForImageTextToText

from lmms_textweighted.harness.model import LlavaTextweightedChat
from tests.vlm_checkpoints import make_checkpoint, without_num2words

DOCUMENTS = 60
# kind -> lmms-eval's class, and what it is made with.
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_5_vl": ("lmms_eval.models.chat.qwen2_5_vl.Qwen2_5_VL", {}),
    "qwen3_vl": ("lmms_eval.models.chat.qwen3_vl.Qwen3_VL", {}),
    "qwen3_vl_moe": ("lmms_eval.models.chat.qwen3_vl.Qwen3_VL", {}),
    "internvl": ("lmms_eval.models.chat.internvl_hf.InternVLHf", {}),
    **dict.fromkeys(
        ("idefics3", "smolvlm", "mistral3", "glm4v", "glm46v"), ("lmms_eval.models.chat.huggingface.Huggingface", {})
    ),
}
_SIZES = [(100, 60), (64, 64), (31, 200), (257, 129), (300, 190), (29, 70), (1, 40), (333, 77)]
_TEXTS = [
    "What is the colour of the circle?\nA. red\nB. blue\nAnswer with the option's letter from the choices directly.",
    "How many shapes are there?",
    "Which of these is true? ",
]
# Transparent grey and palettes are put on white here, as RGBA is; lmms-eval drops their transparency.
_MODES = ["RGB", "RGBA", "L", "P", "RGB", "RGBA"]


def picture(seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    width, height = _SIZES[seed % len(_SIZES)]
    values = generator.integers(0, 255, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values, "RGBA").convert(_MODES[seed % len(_MODES)])


def documents() -> list[list[dict[str, Any]]]:
    """The content of each document's one user turn."""
    found = []
    for number in range(DOCUMENTS):
        count = (1, 1, 2, 1, 3, 0)[number % 6]
        pieces: list[dict[str, Any]] = [{"type": "image", "url": picture(7 * number + place)} for place in range(count)]
        pieces.append({"type": "text", "text": f"{number}. {_TEXTS[number % 3]}"})
        if number % 12 == 2:  # the text between two pictures
            pieces[1], pieces[2] = pieces[2], pieces[1]
            pieces.append({"type": "text", "text": "And that?"})
        found.append(pieces)
    return found


def ask(model: Any, contents: list[list[dict[str, Any]]], kwargs: dict[str, Any]) -> list[str]:
    model.task_dict = {"made": {"test": [{"content": content} for content in contents]}}

    def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [dict(piece) for piece in document["content"]]}]

    requests = []
    for number in range(len(contents)):
        text = contents[number][-1]["text"]
        metadata = {"task": "made", "doc_id": number, "repeats": 1}
        arguments = (text, messages, dict(kwargs), number, "made", "test")
        requests.append(Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata))
    return [answer.text if hasattr(answer, "text") else answer for answer in model.generate_until(requests)]


class WithoutEmpty:
    """A processor without the empty lists of audios, videos and pictures that lmms-eval's `huggingface` gives it: from
    5.23 on transformers refuses `audios`."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, **kwargs: Any) -> Any:
        return self.processor(**{name: value for name, value in kwargs.items() if value != []})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)


class Watched:
    """What a model is given by `generate`, and what it makes of the prompts: one entry a row."""

    def __init__(self, model: Any, image_id: int) -> None:
        self.model, self.image_id, self.generate = model, image_id, model.generate
        self.rows: list[dict[str, Any]] = []
        model.generate = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        ids = args[0] if args else kwargs["input_ids"]
        caught: list[torch.Tensor] = []
        hook = self.model.get_output_embeddings().register_forward_hook(lambda _, __, out: caught.append(out))
        try:
            output = self.generate(*args, **kwargs)
        finally:
            hook.remove()
        pixels = self._pixels(kwargs, ids)
        for row, valid in enumerate(kwargs["attention_mask"].bool()):
            self.rows.append({"ids": ids[row][valid].tolist(), "pixels": pixels[row], "logits": caught[0][row, -1]})
        return output

    def _pixels(self, kwargs: dict[str, Any], ids: torch.Tensor) -> list[bytes]:
        """Each row's part of the pixels, without what pads a batch."""
        given = kwargs.get("pixel_values")
        counts = (ids == self.image_id).sum(dim=1).tolist()
        if given is None:
            assert not any(counts)
            return [b""] * len(ids)
        if "pixel_attention_mask" in kwargs:  # a row of tiles a prompt
            there = kwargs["pixel_attention_mask"].flatten(2).any(2)
            parts = [row[mask] for row, mask in zip(given, there, strict=True)]
        elif "image_sizes" in kwargs:  # padded pictures, 28 x 28 pixels a token
            pictures = [one[:, :tall, :wide] for one, (tall, wide) in zip(given, kwargs["image_sizes"], strict=True)]
            parts = []
            for count in counts:
                mine = []
                while sum(one.numel() for one in mine) < count * 28 * 28 * 3:
                    mine.append(pictures.pop(0))
                parts.append(torch.cat([one.flatten() for one in mine]) if mine else given[:0])
        else:  # tiles or patches, the same number of tokens each
            parts = list(given.split([count * len(given) // sum(counts) for count in counts]))
        return [part.float().numpy().tobytes() for part in parts]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made: dict[str, Any] = {}

    def folder(kind: str) -> Any:
        if kind not in made:
            # A name from which lmms-eval tells a mixture of experts.
            name = f"{kind}-A3B" if "moe" in kind else kind
            made[kind] = make_checkpoint(kind, tmp_path_factory.mktemp("equal") / name, dtype=torch.bfloat16)
        return made[kind]

    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", THEIRS)
def test_unpruned_it_equals_lmms_evals_own_model(kind, folders, monkeypatch, tmp_path, record_property):
    monkeypatch.setenv("LMMS_TEXTWEIGHTED_CACHE", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["lmms-eval"])
    without_num2words(monkeypatch)
    folder, (path, options) = str(folders(kind)), THEIRS[kind]
    module, name = path.rsplit(".", 1)
    if name == "Huggingface":  # under transformers 5 it looks model types up among classes, and takes a headless model
        monkeypatch.setattr(f"{module}.AutoModel", AutoModelForImageTextToText)
    theirs = getattr(importlib.import_module(module), name)(
        pretrained=folder, device="cpu", device_map="cpu", batch_size=1, **options
    )
    if name == "Huggingface":
        theirs.processor = WithoutEmpty(theirs.processor)
    theirs._model.float()  # they load bfloat16 weights, which the checkpoint has
    ours = LlavaTextweightedChat(pretrained=folder, strategy="none", batch_size=4)
    assert all(torch.equal(a, b) for a, b in zip(theirs.model.parameters(), ours.llava.model.parameters(), strict=True))
    image = ours.llava.model.config.image_token_id
    seen = {"theirs": Watched(theirs.model, image), "ours": Watched(ours.llava.model, image)}
    kwargs = {"max_new_tokens": 6, "temperature": 0}
    reference, mine = (ask(model, documents(), kwargs) for model in (theirs, ours))
    assert [answer.strip() for answer in reference] == mine
    assert len(set(mine)) > DOCUMENTS // 2

    assert len(seen["theirs"].rows) == len(seen["ours"].rows) == DOCUMENTS
    by_ids = {tuple(row["ids"]): row for row in seen["theirs"].rows}
    assert len(by_ids) == DOCUMENTS
    largest = 0.0
    for row in seen["ours"].rows:
        their = by_ids.pop(tuple(row["ids"]))
        assert row["pixels"] == their["pixels"]
        largest = max(largest, (row["logits"] - their["logits"]).abs().max().item())
    record_property("largest_difference", largest)
    assert largest < 1e-4
