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
from lmms_textweighted.experiment.points import make_points, run_document
from lmms_textweighted.experiment.ranges import parse_tokens
from lmms_textweighted.families import load
from lmms_textweighted.harness.documents import Document, Documents
from lmms_textweighted.inference import Decoding, PrunedLlava

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


def run(repeats: int = 5) -> list[Row]:
    """Both comparisons, and how the time grows.

    The questions are swept in `repeats` parts that take turns with the two others: together they are one whole run.
    """
    llava = PrunedLlava(*load("tiny"))
    eager = copy.deepcopy(llava)
    eager.model.set_attn_implementation("eager")
    documents = list(Documents.of_task("shapes_mcq", SAMPLES, single_prediction_prompt=False))
    few, some = documents[:1], BUDGETS[::14]  # 1 question, 5 budgets
    scale = SAMPLES * len(BUDGETS) / (len(few) * len(some))
    parts = iter([few, *(documents[part::repeats] for part in range(repeats))])  # the first warms up
    times = take_turns(
        {
            "sweep": lambda: sweep(llava, next(parts), BUDGETS),
            "one by one": partial(one_by_one, llava, few, some),
            "published": partial(published, eager, few, some),
        },
        repeats,
    )
    whole = sum(times["sweep"].seconds)
    details = {name: {"seconds": value.seconds, "spread": value.spread} for name, value in times.items()}
    size = f"{len(BUDGETS)} budgets x {SAMPLES} questions"
    scaled = f"{whole:.0f} s; the other on {len(some)} budgets x {len(few)} question, scaled by {scale:.0f}"
    return [
        Row(
            f"sweep, {size}: the published procedure / ours",
            scale * times["published"].median / whole,
            20.0,
            note=scaled,
            details=details,
        ),
        Row(
            f"sweep, {size}: each budget by itself / ours", scale * times["one by one"].median / whole, 1.7, note=scaled
        ),
        *growth(llava, documents[:8], repeats=3),
    ]


def growth(llava: PrunedLlava, documents: Sequence[Document], repeats: int) -> list[Row]:
    """Seconds at a quarter, a half and all of some questions, and of the budgets: 2 and 4 times the first is linear."""
    rows = []
    sizes: dict[str, dict[str, tuple[Sequence[Document], Sequence[int]]]] = {
        "questions": {str(len(documents) // part): (documents[::part], BUDGETS) for part in (4, 2, 1)},
        "budgets": {str(len(BUDGETS[::part])): (documents[:2], BUDGETS[::part]) for part in (4, 2, 1)},
    }
    for what, cases in sizes.items():
        work = {name: partial(sweep, llava, asked, budgets) for name, (asked, budgets) in cases.items()}
        times = take_turns(work, repeats, warm_up=0)
        first, *_, last = times.values()
        seconds = ", ".join(f"{name}: {value.median:.2f} s" for name, value in times.items())
        grown = int(list(cases)[-1]) / int(next(iter(cases)))
        rows.append(
            Row(
                f"sweep growth with {what}: time of the largest / smallest, over {grown:.1f}",
                last.median / first.median / grown,
                note=seconds,
            )
        )
    return rows


def main(repeats: int = typer.Option(5)) -> None:
    """Print the rows."""
    show(run(repeats))


if __name__ == "__main__":
    typer.run(main)
