"""Thousands of documents through the registered model: does memory, or anything else, grow with them?

`python -m benchmarks.load` asks as many distinct questions as it is told of lmms-eval's model class, text-weighted at
16 tokens, with ranks and the trace store, and looks at the process every thousand. The pictures are the embedded
set's, over and over. So that 20,000 of them take minutes, the model is a small random LLaVA with the embedded model's
tokenizer (112 px, 64 image tokens, 4 decoder layers); `--pretrained tiny` asks the embedded one.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import typer
from lmms_eval.api.instance import Instance
from rich.console import Console
from rich.table import Table
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lmms_textweighted.harness.model import LlavaTextweighted
from lmms_textweighted.tiny.architecture import build_processor, build_tokenizer
from lmms_textweighted.tiny.testset import load_testset

EVERY = 1000
SIDE, PATCH, LAYERS, WIDTH = 112, 14, 4, 32
_KWARGS = {"max_new_tokens": 2, "temperature": 0, "do_sample": False}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Look:
    """The process after so many documents.

    resident, store: bytes. hooks: on all modules of the model, without those that transformers puts on at the first
    forward, pruned or not, and leaves there.
    """

    documents: int
    resident: int
    files: int
    hooks: int
    threads: int
    store: int


class Asked:
    """Documents that are made when they are asked for, each with a text of its own."""

    def __init__(self, count: int, store_key: str) -> None:
        self.pictures = [document["image"].convert("RGB") for document in load_testset().select(range(50))]
        self.count, self.store_key = count, store_key

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        picture = self.pictures[number % len(self.pictures)]
        return {"image": picture, "uid": f"document {number}", "trace_store": self.store_key}


def make_checkpoint(folder: Path) -> None:
    """The small random LLaVA."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    processor.image_processor.size = {"shortest_edge": SIDE}
    processor.image_processor.crop_size = {"height": SIDE, "width": SIDE}
    config = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=2048,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def requests_of(count: int) -> list[Instance]:
    """As lmms-eval makes them for the simple interface."""

    def visuals(document: dict[str, Any]) -> list[Any]:
        return [document["image"]]

    return [
        Instance(
            request_type="generate_until",
            arguments=(
                f"Which shape is number {number}?\nA. circle\nB. square",
                dict(_KWARGS),
                visuals,
                number,
                "load",
                "test",
            ),
            idx=0,
            metadata={"task": "load", "doc_id": number, "repeats": 1},
        )
        for number in range(count)
    ]


def look(model: LlavaTextweighted, documents: int) -> Look:
    gc.collect()
    process = psutil.Process()
    path = model.store.path
    return Look(
        documents=documents,
        resident=process.memory_info().rss,
        files=len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else process.num_fds(),
        hooks=sum(
            not getattr(hook, "__module__", "").startswith("transformers.")
            for module in model.llava.model.modules()
            for name in _HOOKS
            for hook in getattr(module, name).values()
        ),
        threads=process.num_threads(),
        store=path.stat().st_size if path is not None else 0,
    )


def size_of(thing: Any, seen: set[int]) -> int:
    """Bytes of an object and of all that hangs on it and was not seen before."""
    if id(thing) in seen or isinstance(thing, type):
        return 0
    seen.add(id(thing))
    size = sys.getsizeof(thing)
    if isinstance(thing, dict):
        return size + sum(size_of(key, seen) + size_of(value, seen) for key, value in thing.items())
    if isinstance(thing, list | tuple | set):
        return size + sum(size_of(item, seen) for item in thing)
    return size + size_of(getattr(thing, "__dict__", {}), seen)


def run(pretrained: str, documents: int, batch_size: int, keep_tokens: int) -> tuple[list[Look], Look, float]:
    """What was seen before the first document and after every thousand, what when all was over, and the bytes of an
    answer."""
    model = LlavaTextweighted(
        pretrained=pretrained, strategy="text_weighted", keep_tokens=keep_tokens, ranks=True, batch_size=batch_size
    )
    model.store.open()
    model.task_dict = {"load": {"test": Asked(documents, model.store.key)}}
    requests = requests_of(documents)
    looks, answers = [look(model, 0)], []
    for answer in _streamed(model.generate_until(requests)):
        answers.append(answer)
        if len(answers) % EVERY == 0:
            looks.append(look(model, len(answers)))
    end = look(model, len(answers))
    seen: set[int] = set()
    size_of(model.run_settings, seen)
    kept = sum(size_of(answer, seen) for answer in answers) / len(answers)
    return looks, end, kept


def _streamed(answers: Any) -> Iterator[Any]:
    yield from answers


def slope(looks: list[Look], what: str) -> float:
    """Bytes a document of the least-squares line through all looks but the first two, which are warm-up."""
    chosen = looks[2:]
    return float(np.polyfit([each.documents for each in chosen], [getattr(each, what) for each in chosen], 1)[0])


def main(
    documents: int = typer.Option(20_000, help="At least 4,000."),
    pretrained: str = typer.Option("", help="`tiny` or another checkpoint; without it the small random one."),
    batch_size: int = typer.Option(8),
    keep_tokens: int = typer.Option(16),
) -> None:
    """Print what was seen, and the slopes."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LMMS_TEXTWEIGHTED_CACHE"] = f"{folder}/cache"
        if not pretrained:
            make_checkpoint(Path(folder) / "small")
        looks, end, kept = run(pretrained or f"{folder}/small", documents, batch_size, keep_tokens)
    table = Table(title=f"{documents} documents, {pretrained or 'a small random LLaVA'}, batch {batch_size}")
    for heading in ("documents", "resident", "open files", "hooks", "threads", "trace store"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, each in [*((str(each.documents), each) for each in looks), ("the end", end)]:
        sizes = f"{each.resident / 2**20:.1f} MiB", f"{each.store / 2**20:.2f} MiB"
        table.add_row(name, sizes[0], str(each.files), str(each.hooks), str(each.threads), sizes[1])
    console = Console(width=100)
    console.print(table, markup=False)
    console.print(
        f"resident memory: {slope(looks, 'resident') / 1024:.2f} KiB a document after warm-up; of these "
        f"{kept / 1024:.2f} KiB are the answer, which lmms-eval keeps until it scores\n"
        f"trace store: {slope(looks, 'store') / 1024:.2f} KiB a document on disk",
        soft_wrap=True,
    )


if __name__ == "__main__":
    typer.run(main)
