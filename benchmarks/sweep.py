"""The sweep, 57 budgets x 50 questions with ranks, against two other ways to the same figures.

`python -m benchmarks.sweep`, on the embedded model:

- the published procedure: for each budget and question a whole eager `generate` without a cache, the attentions of all
  layers returned, and two SVD loops over the heads of the last one;
- our own engine, which prefills and generates each budget of each question by itself, with its KV cache.

Both are run on a few budgets and questions, spread over the range, and scaled to all of them; the sweep is run whole.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import typer

from benchmarks.rows import Row, show
from benchmarks.spectrum import two_loops
from benchmarks.timing import take_turns
from lmms_textweighted.harness.documents import Document, Documents
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.loaders import load
from lmms_textweighted.ranges import parse_tokens
from lmms_textweighted.sweep import make_points, run_document

BUDGETS = parse_tokens("576:16:-10")
SAMPLES, LAYER = 50, 2
_DECODING = Decoding(max_new_tokens=16)


def sweep(llava: PrunedLlava, documents: Sequence[Document], budgets: Sequence[int]) -> None:
    """Ours: one prefix a question, all budgets from there."""
    points = make_points(["text_weighted"], budgets, LAYER)
    for document in documents:
        run_document(llava, document.message, points, decoding=_DECODING, ranks=True, judge=lambda answer: (0.0, False))


def one_by_one(llava: PrunedLlava, documents: Sequence[Document], budgets: Sequence[int]) -> None:
    """Our engine without the sweep: every budget prefills for itself."""
    for document in documents:
        for point in make_points(["text_weighted"], budgets, LAYER):
            pruned = PrunedLlava(llava.model, llava.processor, point.plan)
            pruned.generate([[document.message]], _DECODING, ranks=True)


def published(eager: PrunedLlava, documents: Sequence[Document], budgets: Sequence[int]) -> None:
    """The published script's procedure: nothing shared, nothing cached, every attention returned."""
    for document in documents:
        for budget in budgets:
            inputs: dict[str, Any] = dict(eager.encode([[document.message]]).inputs)
            with torch.inference_mode():
                output = eager.model.generate(
                    **inputs,
                    max_new_tokens=_DECODING.max_new_tokens,
                    do_sample=False,
                    use_cache=False,
                    output_attentions=True,
                    return_dict_in_generate=True,
                )
            image = (inputs["input_ids"][0] == eager.model.config.image_token_id).nonzero().flatten()
            scored = output.attentions[0][LAYER][0].mean(dim=0)
            text = torch.arange(int(image[-1]) + 1, scored.shape[0])
            weights = scored[text][:, text].sum(dim=0)
            kept = image[(weights @ scored[text][:, image]).topk(budget).indices.sort().values]
            two_loops(output.attentions[0][-1][0][:, kept][:, :, kept])


def run(repeats: int = 3) -> list[Row]:
    """Both comparisons, and how the time grows."""
    llava = PrunedLlava(*load("tiny"))
    eager = copy.deepcopy(llava)
    eager.model.set_attn_implementation("eager")
    documents = list(Documents.of_task("shapes_mcq", SAMPLES, single_prediction_prompt=False))
    few, some = documents[::25], BUDGETS[::8]  # 2 questions, 8 budgets
    scale = len(documents) * len(BUDGETS) / (len(few) * len(some))
    times = take_turns(
        {
            "sweep": partial(sweep, llava, documents, BUDGETS),
            "one by one": partial(one_by_one, llava, few, some),
            "published": partial(published, eager, few, some),
            "half the questions": partial(sweep, llava, documents[: SAMPLES // 2], BUDGETS),
            "half the budgets": partial(sweep, llava, documents, BUDGETS[::2]),
        },
        repeats,
        warm_up=0,
    )
    seconds = {name: value.median for name, value in times.items()}
    details = {name: {"median_s": value.median, "spread": value.spread} for name, value in times.items()}
    size = f"{len(BUDGETS)} budgets x {SAMPLES} questions"
    scaled = f"{len(some)} budgets x {len(few)} questions, scaled by {scale:.0f}"
    return [
        Row(f"sweep, {size}: the published procedure / ours", scale * seconds["published"] / seconds["sweep"], 20.0,
            note=scaled, details=details),
        Row(f"sweep, {size}: each budget by itself / ours", scale * seconds["one by one"] / seconds["sweep"], 1.7,
            note=scaled),
        Row("sweep growth: whole / half the questions (2 is linear)", seconds["sweep"] / seconds["half the questions"]),
        Row("sweep growth: 57 / 29 budgets (1.97 is linear)", seconds["sweep"] / seconds["half the budgets"]),
    ]  # fmt: skip


def main(repeats: int = typer.Option(3)) -> None:
    """Print the rows."""
    show(run(repeats))


if __name__ == "__main__":
    typer.run(main)
