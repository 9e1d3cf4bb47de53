"""The first embedded scenes as a user's own question file and folder of pictures."""

from __future__ import annotations

import json
from pathlib import Path

from lmms_eval.tasks.scienceqa.utils import sqa_doc_to_target, sqa_doc_to_text

from lmms_textweighted.tiny.testset import load_testset

NO_PROMPTS = {"format": "default", "pre_prompt": "", "post_prompt": ""}


def export_questions(folder: Path, count: int) -> Path:
    """Write `folder/questions.json` and `folder/images/{number}.png`; returns the former.

    Every second question has no `<image>` tag.
    """
    (folder / "images").mkdir(parents=True)
    entries = []
    for number, document in enumerate(load_testset().select(range(count))):
        document["image"].save(folder / "images" / f"{number}.png")
        turns = [
            {"from": "human", "value": "<image>\n" * (number % 2) + sqa_doc_to_text(document, NO_PROMPTS)},
            {"from": "gpt", "value": sqa_doc_to_target(document)},
        ]
        entries.append({"id": f"scene {number}", "image": f"{number}.png", "conversations": turns})
    path = folder / "questions.json"
    path.write_text(json.dumps(entries))
    return path
