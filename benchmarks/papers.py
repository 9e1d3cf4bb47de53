"""What papers and their authors' code disagree on, and how many tokens that changes: docs/code-and-paper.md's table.

`python -m benchmarks.papers` prefills documents of the embedded set with a method and with its `_paper` variant at one
budget, and compares what stays after each one's last stage. A token is one of both where it is the same patch. Methods
that read the question through CLIP's text tower (`cdpruner`, `trim`) have no such tower on the embedded model, and only
their words stand in the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import typer
from rich.console import Console
from rich.progress import track

from lmms_textweighted.families import LoadOptions, load
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.inference import PrunedLlava
from lmms_textweighted.inference.geometry import geometry_of
from lmms_textweighted.methods import make_plan, paper_variants

# Of each variant: what the paper says, and what the code does.
WORDS = {
    "fastv_all_rows": ("mean attention of all rows", "the last row's attention"),
    "sparsevlm_paper": ("clusters by cosine, summed", "clusters by Euclidean distance, averaged"),
    "dart_paper": ("pivots in no order that it names; here by norm", "pivots in the order of a Python set"),
    "visionzip_paper": ("contextual tokens are means", "target + mean, and the class token is one of the budget"),
    "hiprune_paper": ("neighbours in the picture", "neighbours by number, over the edges of rows"),
    "holov_paper": (
        "crops of the picture",
        "runs of the raster, zeros where a quota is above a run, order by attention",
    ),
    "prumerge_paper": ("weighted mean, no extra token", "sum, one token of all that leave, order by attention"),
    "prumerge_plus_paper": ("weighted mean, no extra token", "sum, one token of all that leave, order by attention"),
    "cdpruner_paper": ("relevance is the cosine to the question", "its negative"),
    "trim_paper": ("similarity to the question", "its negative, of vectors that are not normalised"),
}
HEADINGS = ("method", "variant", "the paper says", "the code does", "tokens that differ", "documents that differ")


@dataclass(frozen=True)
class Kept:
    """What one document's last layer is given of its picture. whole: patches that stand for themselves or are what
    others were merged into, in their order. made: places at which a vector is of no patch of its own."""

    whole: tuple[int, ...]
    made: frozenset[int]

    @property
    def patches(self) -> frozenset[int]:
        return frozenset(self.whole) - self.made


def pairs() -> dict[str, str]:
    """{variant: method}, of all that have one."""
    return {"fastv_all_rows": "fastv", **paper_variants()}


def kept_of(llava: PrunedLlava, documents: Documents) -> list[Kept]:
    found = []
    for document in track(list(documents), description=llava.plan.name, transient=True, console=Console(stderr=True)):
        (answer,) = llava.generate([[document.message]], documents.decoding)
        last = answer.trace.stages[-1]
        made = {place for stage in answer.trace.stages for place, sources in stage.sources.items() if not sources}
        # PruMerge's last token stands where the first patch left, and is made of all that left.
        if llava.plan.name in ("prumerge", "prumerge_plus"):
            made.add(int(last.kept[-1]))
        found.append(Kept(tuple(last.kept.tolist()), frozenset(made)))
    return found


def row(variant: str, method: str, code: list[Kept], paper: list[Kept]) -> list[str]:
    """A line of the table. A token that is no patch is one that differs."""
    differ = [max(len(a.whole), len(b.whole)) - len(a.patches & b.patches) for a, b in zip(code, paper, strict=True)]
    said, done = WORDS[variant]
    documents = sum(count > 0 for count in differ)
    return [
        f"`{method}`",
        f"`{variant}`",
        said,
        done,
        f"{sum(differ) / len(differ):.1f} of {len(code[0].whole)}",
        f"{documents} of {len(differ)}",
    ]


def main(
    documents: int = typer.Option(100, help="Documents of shapes_mcq."),
    keep_tokens: int = typer.Option(64, help="Image tokens that stay at the end."),
    only: str = typer.Option("", help="Variants, separated by commas; all without it."),
) -> None:
    """Print the table in Markdown."""
    source = Documents.of_task("shapes_mcq", documents, single_prediction_prompt=False)
    model, processor = load("tiny", LoadOptions(dtype="float32"))
    kept: dict[str, list[Kept]] = {}
    print(f"| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}", flush=True)
    for variant, method in pairs().items():
        if only and variant not in only.split(","):
            continue
        plans = {
            name: make_plan(name, keep_tokens=keep_tokens, geometry=geometry_of(model)) for name in (method, variant)
        }
        if any(plan.reads_text for plan in plans.values()):
            line = [f"`{method}`", f"`{variant}`", *WORDS[variant], "not measured", "no text tower"]
        else:
            for name, plan in plans.items():
                if name not in kept:
                    kept[name] = kept_of(PrunedLlava(model, processor, plan), source)
            line = row(variant, method, kept[method], kept[variant])
        print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
