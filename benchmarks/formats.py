"""Loader x prompt x batch size on the embedded model: accuracy, overlap of the kept tokens, largest logit difference.

`python -m benchmarks.formats` converts the embedded checkpoint into a temporary folder and compares every way of
loading it, at batch size 1 and 8, with transformers at batch size 1 under the same prompt. Needs the llava package.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lmms_textweighted.families import LoadOptions, load
from lmms_textweighted.families.attach import prune
from lmms_textweighted.families.liuhaotian.convert import convert
from lmms_textweighted.harness.documents import Document, Documents
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.methods import make_plan
from lmms_textweighted.prompts import TEMPLATES

LOADERS = {"transformers": "hf", "llava package": "llava", "converted in memory": "hf"}
BATCHES = (1, 8)


@dataclass
class Row:
    """One way of loading, prompting and batching. overlap: mean share of kept tokens that the reference keeps, too."""

    loader: str
    template: str
    batch: int
    accuracy: float
    overlap: float
    logits: float


def main(
    samples: int = typer.Option(100, help="Documents of shapes_mcq."),
    keep_tokens: int = typer.Option(64, help="Image tokens that stay after layer 2."),
) -> None:
    """Print the table."""
    documents = Documents.of_task("shapes_mcq", samples, single_prediction_prompt=False)
    asked = list(documents)
    table = Table(title=f"embedded model, {len(asked)} questions, text-weighted, {keep_tokens} of 576 tokens")
    for heading in ("loader", "prompt", "batch", "accuracy", "kept overlap", "largest logit difference"):
        table.add_column(heading, justify="left" if heading in ("loader", "prompt") else "right", no_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        paths = {"transformers": "tiny", "llava package": folder + "/l", "converted in memory": folder + "/l"}
        convert("tiny", Path(folder) / "l")
        models = {name: load(paths[name], LoadOptions(loader=loader)) for name, loader in LOADERS.items()}
        work = [(template, name, batch) for template in TEMPLATES for name in LOADERS for batch in BATCHES]
        reference: dict[str, tuple[torch.Tensor, list[set[int]]]] = {}
        for template, name, batch in track(work, transient=True):
            llava = PrunedLlava(*models[name], make_plan(keep_tokens=keep_tokens), template)
            row, found = measure(documents, asked, llava, name, batch, reference.get(template))
            reference.setdefault(template, found)
            figures = (f"{row.accuracy:.1%}", f"{row.overlap:.2%}", f"{row.logits:.1e}")
            table.add_row(row.loader, row.template, str(row.batch), *figures)
    Console(width=110).print(table)


def measure(
    documents: Documents,
    asked: list[Document],
    llava: PrunedLlava,
    name: str,
    batch: int,
    reference: tuple[torch.Tensor, list[set[int]]] | None,
) -> tuple[Row, tuple[torch.Tensor, list[set[int]]]]:
    """A row of the table, and what it was made from: [N, V] logits of the prompts' last tokens, kept positions."""
    logits, kept, score = [], [], 0.0
    for part in _batches(asked, batch):
        messages = [[document.message] for document in part]
        encoded = llava.encode(messages)
        with torch.inference_mode(), prune(llava.model, llava.plan) as trace:
            logits.append(llava.model(**encoded.inputs).logits[:, -1].clone())
        kept += [set(document.stages[0].kept.tolist()) for document in trace.documents]
        answers = llava.generate(messages, Decoding(max_new_tokens=16))
        score += sum(documents.score(d, answer.text) for d, answer in zip(part, answers, strict=True))
    found = torch.cat(logits), kept
    base_logits, base_kept = reference or found
    overlap = sum(len(a & b) / len(b) for a, b in zip(kept, base_kept, strict=True)) / len(kept)
    largest = (found[0] - base_logits).abs().max().item()
    return Row(name, str(llava.template), batch, score / len(asked), overlap, largest), found


def _batches(asked: list[Document], size: int) -> Iterator[list[Document]]:
    for start in range(0, len(asked), size):
        yield asked[start : start + size]


if __name__ == "__main__":
    typer.run(main)
