"""Unpruned, every kind gives what lmms-eval's own model of it gives: ids, pixels, first-token logits and answers.

Tiny checkpoints with the real processor classes; 60 documents, odd sizes, transparent pictures and several of them
among them; ours in batches of 4, theirs one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lmms_textweighted.harness.model import LlavaTextweightedChat
from tests.lmms_eval_models import THEIRS, Watched, ask, their_model
from tests.vlm_checkpoints import make_checkpoint, without_num2words
from tests.vlms import MODELS

DOCUMENTS = 60
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
@pytest.mark.parametrize("kind", [kind for kind in THEIRS if kind in MODELS])
def test_unpruned_it_equals_lmms_evals_own_model(kind, folders, monkeypatch, tmp_path, record_property):
    monkeypatch.setenv("LMMS_TEXTWEIGHTED_CACHE", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["lmms-eval"])
    without_num2words(monkeypatch)
    folder = str(folders(kind))
    with their_model(kind, folder) as theirs:
        assert_equal(theirs, folder, record_property)


def assert_equal(theirs, folder, record_property):
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
