"""The generation phase of an evaluation: ours unpruned in batches of 8, against lmms-eval's `llava_hf` one by one.

`python -m benchmarks.evaluation` runs both over the embedded set's first documents in one process, as lmms-eval calls
them; start-up is not part of it. The answers must be the same. (`llava_hf` refuses batches above 1.)
"""

from __future__ import annotations

import time
from typing import Any

import typer
from lmms_eval.api.instance import Instance
from lmms_eval.models.chat.llava_hf import LlavaHf
from lmms_eval.tasks.scienceqa.utils import sqa_doc_to_text

from benchmarks.rows import Row, show
from lmms_textweighted.harness.model import LlavaTextweightedChat
from lmms_textweighted.paths import checkpoint_folder
from lmms_textweighted.tiny.testset import load_testset

_PROMPT = {
    "format": "default",
    "pre_prompt": "",
    "post_prompt": "\nAnswer with the option's letter from the given choices directly.",
}
_KWARGS = {"max_new_tokens": 16, "temperature": 0, "until": ["\n\n"]}


def requests_of(documents: Any) -> list[Instance]:
    """The requests that lmms-eval would make of a chat model."""

    def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
        picture = {"type": "image", "url": document["image"].convert("RGB")}
        return [{"role": "user", "content": [picture, {"type": "text", "text": sqa_doc_to_text(document, _PROMPT)}]}]

    return [
        Instance(
            request_type="generate_until",
            arguments=(sqa_doc_to_text(document, _PROMPT), messages, dict(_KWARGS), number, "shapes", "test"),
            idx=0,
            metadata={"task": "shapes", "doc_id": number, "repeats": 1},
        )
        for number, document in enumerate(documents)
    ]


def run(documents: int = 200, repeats: int = 5) -> list[Row]:
    """One row; the models take turns."""
    chosen = load_testset().select(range(documents))
    ours = LlavaTextweightedChat(pretrained="tiny", strategy="none", conv_template="hf", batch_size=8)
    theirs = LlavaHf(pretrained=str(checkpoint_folder()), device="cpu", device_map="cpu", dtype="float32")
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    answers: dict[str, list[str]] = {}
    for turn in range(repeats + 1):
        for name, model in (("ours", ours), ("theirs", theirs)):
            model.task_dict = {"shapes": {"test": chosen}}
            asked = requests_of(chosen if turn else chosen.select(range(8)))  # the first turn only warms up
            began = time.perf_counter()
            texts = [getattr(answer, "text", answer) for answer in model.generate_until(asked)]
            if turn:
                seconds[name].append(time.perf_counter() - began)
                answers[name] = [text.strip() for text in texts]
    same = sum(a == b for a, b in zip(answers["ours"], answers["theirs"], strict=True))
    middle = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    return [
        Row(
            f"evaluation, {documents} documents: llava_hf at batch 1 / ours unpruned at batch 8",
            middle["theirs"] / middle["ours"],
            2.0,
            note=f"{same} of {documents} answers the same",
            details={name: {"seconds": values} for name, values in seconds.items()},
        )
    ]


def main(documents: int = typer.Option(200), repeats: int = typer.Option(5)) -> None:
    """Print the row."""
    show(run(documents, repeats))


if __name__ == "__main__":
    typer.run(main)
