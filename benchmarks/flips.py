"""Answers that change with the batch: each document alone, and in batches of 2 and 8, for every number format.

`python -m benchmarks.flips` counts them on the embedded model and its set, pruned and unpruned. In exact arithmetic
there are none. A larger or padded batch goes through other kernels, whose rounding differs; so the unpruned model has
its own, and a tie of two scores that rounding breaks differently keeps another token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.rows import machine
from lmms_textweighted.families import LoadOptions, load
from lmms_textweighted.harness.batches import batches
from lmms_textweighted.harness.documents import Document, Documents
from lmms_textweighted.inference import Answer, Decoding, PrunedLlava
from lmms_textweighted.methods import make_plan
from lmms_textweighted.statistics import mean_interval

DTYPES = ("float32", "float16", "bfloat16")
BATCHES = (1, 2, 8)


@dataclass(frozen=True)
class Flips:
    """What a batch changed against the same documents alone. answers, kept: documents whose text, or kept positions,
    differ. right: documents answered right."""

    dtype: str
    strategy: str
    batch: int
    documents: int
    right: int
    answers: int
    kept: int


def answer_all(llava: PrunedLlava, asked: Sequence[Document], size: int, decoding: Decoding) -> list[Answer]:
    """All documents in batches as lmms-eval's model makes them, in the documents' order."""
    tokenizer = llava.processor.tokenizer

    def length(document: Document) -> int:
        return len(tokenizer(document.message.text)["input_ids"])

    answers: dict[int, Answer] = {}
    for places in batches(asked, size, kind=lambda _: None, length=length):
        found = llava.generate([[asked[place].message] for place in places], decoding)
        answers.update(zip(places, found, strict=True))
    return [answers[place] for place in range(len(asked))]


def run(documents: int, strategies: Sequence[str], keep_tokens: int, dtypes: Sequence[str] = DTYPES) -> list[Flips]:
    """Every format and strategy, at each batch size."""
    source = Documents.of_task("shapes_mcq", documents, single_prediction_prompt=False)
    asked, decoding = list(source), source.decoding
    rows = []
    work = [(dtype, strategy) for dtype in dtypes for strategy in strategies]
    for dtype, strategy in track(work, transient=True):
        plan = make_plan(strategy) if strategy == "none" else make_plan(strategy, keep_tokens=keep_tokens)
        llava = PrunedLlava(*load("tiny", LoadOptions(dtype=dtype)), plan)
        single: list[Answer] = []
        for size in BATCHES:
            found = answer_all(llava, asked, size, decoding)
            single = single or found
            rows.append(
                Flips(
                    dtype=dtype,
                    strategy=strategy,
                    batch=size,
                    documents=len(asked),
                    right=sum(source.score(d, a.text) == 1 for d, a in zip(asked, found, strict=True)),
                    answers=sum(a.text != b.text for a, b in zip(found, single, strict=True)),
                    kept=sum(_kept(a) != _kept(b) for a, b in zip(found, single, strict=True)),
                )
            )
    return rows


def _kept(answer: Answer) -> list[list[int]]:
    return [stage.kept.tolist() for stage in answer.trace.stages]


def main(
    documents: int = typer.Option(200, help="Documents of shapes_mcq."),
    strategies: str = typer.Option("none,text_weighted,fastv", help="Methods, separated by commas."),
    keep_tokens: int = typer.Option(64, help="Image tokens that stay after layer 2."),
    dtypes: str = typer.Option(",".join(DTYPES), help="Number formats, separated by commas."),
) -> None:
    """Print the table."""
    rows = run(documents, strategies.split(","), keep_tokens, dtypes.split(","))
    table = Table(title=f"embedded model, {rows[0].documents} documents, {machine()['processor']}")
    for heading in ("format", "strategy", "batch", "right", "answers changed", "95 %", "kept sets changed"):
        table.add_column(heading, justify="left" if heading in ("format", "strategy") else "right", no_wrap=True)
    for row in rows:
        low, high = mean_interval([1.0] * row.answers + [0.0] * (row.documents - row.answers))
        table.add_row(
            row.dtype,
            row.strategy,
            str(row.batch),
            str(row.right),
            str(row.answers) if row.batch > 1 else "",
            f"[{low:.1%}, {high:.1%}]" if row.batch > 1 else "",
            str(row.kept) if row.batch > 1 else "",
        )
    Console(width=110).print(table, markup=False)


if __name__ == "__main__":
    typer.run(main)
