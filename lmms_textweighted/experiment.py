"""`lmms-textweighted sweep`: options -> documents, model, points -> files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import datasets
import transformers
from loguru import logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lmms_textweighted.errors import InputError, describe
from lmms_textweighted.harness.documents import Document, Documents
from lmms_textweighted.harness.output import check_writable
from lmms_textweighted.inference import Decoding, PrunedLlava, StatedLengths
from lmms_textweighted.loaders.hf import LoadOptions, load, weights_fingerprint
from lmms_textweighted.prompts import check_template, render
from lmms_textweighted.ranges import parse_samples, parse_tokens
from lmms_textweighted.report.experiment import experiment_data, write_answers, write_json
from lmms_textweighted.sweep import Outcome, Point, check_points, collect, make_points, run_document

_PACKAGES = ("lmms-textweighted", "lmms-eval", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Experiment:
    """The sweep's options, checked. num_samples None: all documents."""

    model_path: str
    conv_mode: str
    task: str
    num_samples: int | None
    pruning_layer: int
    tokens: list[int]
    points: list[Point]
    single_pred_prompt: bool
    stated: StatedLengths
    ranks: bool
    seed: int
    load_options: LoadOptions
    output_dir: Path

    @classmethod
    def parse(cls, options: dict[str, Any]) -> Experiment:
        """From the command line's options. Raises InputError or PlanError, one line each, before any work."""
        if options["model_base"]:
            raise InputError(
                f"model_base is {options['model_base']!r}: LoRA checkpoints in liuhaotian format are not supported, "
                "merge them first"
            )
        tokens = parse_tokens(_joined(options["tokens"]))
        strategies = [name.strip() for name in _joined(options["strategies"]).split(",") if name.strip()]
        whole = {name: _whole(name, options[name]) for name in ("pruning_layer", "seed")}
        stated = [_whole(name, options[name]) for name in ("fast_v_sys_length", "fast_v_image_token_length")]
        output_dir = Path(str(options["output_dir"]))
        check_writable(output_dir)
        return cls(
            model_path=str(options["model_path"]),
            conv_mode=check_template(options["conv_mode"]),
            task=str(options["task"]),
            num_samples=parse_samples(options["num_samples"]),
            pruning_layer=whole["pruning_layer"],
            tokens=tokens,
            points=make_points(strategies, tokens, whole["pruning_layer"]),
            single_pred_prompt=bool(options["single_pred_prompt"]),
            stated=StatedLengths(*stated),
            ranks=bool(options["ranks"]),
            seed=whole["seed"],
            load_options=LoadOptions(
                device=options["device"],
                dtype=str(options["dtype"]),
                device_map=options["device_map"],
                attn_implementation=options["attn_implementation"],
            ),
            output_dir=output_dir,
        )


def run_experiment(experiment: Experiment) -> dict[str, Any]:
    """Run the sweep and write its files; returns the JSON's content."""
    console = Console()
    _quiet()
    model, processor = load(experiment.model_path, experiment.load_options)
    llava = PrunedLlava(model, processor, template=experiment.conv_mode, seed=experiment.seed, stated=experiment.stated)
    check_points(experiment.points, llava)
    documents = Documents.of_task(
        experiment.task, experiment.num_samples, single_prediction_prompt=experiment.single_pred_prompt
    )
    seen: list[Document] = []
    outcomes: list[list[Outcome]] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    decoding = documents.decoding
    with Progress(*columns, console=console) as progress, _target(experiment, "answers.jsonl").open("w") as file:
        label = f"{len(documents)} documents x {len(experiment.points)} points"
        for document in progress.track(documents, total=len(documents), description=label):
            outcomes.append(_answer(experiment, llava, documents, document, decoding))
            seen.append(document)
            row = {"document": document.number, "digest": document.digest, "target": document.target}
            write_answers(file, row, experiment.points, outcomes[-1])
    curves = collect(experiment.points, outcomes)
    layers = model.config.get_text_config().num_hidden_layers
    image_tokens = model.config.image_seq_length
    data = experiment_data(
        curves, _meta(experiment, llava, documents, seen, layers), layers=layers, image_tokens=image_tokens
    )
    _write(experiment, data)
    console.print(_table(data))
    for name in ("json", "png"):
        console.print(f"wrote {_target(experiment, name)}", soft_wrap=True)
    return data


def _answer(
    experiment: Experiment, llava: PrunedLlava, documents: Documents, document: Document, decoding: Decoding
) -> list[Outcome]:
    """One document at every point. Raises InputError that names the document, whatever went wrong with it."""
    try:
        return run_document(
            llava,
            document.message,
            experiment.points,
            decoding=decoding,
            ranks=experiment.ranks,
            judge=lambda answer: (documents.score(document, answer), answer.strip() == document.target.strip()),
        )
    except Exception as error:
        raise InputError(f"task {experiment.task}, document {document.number}: {describe(error)}") from error


def _write(experiment: Experiment, data: dict[str, Any]) -> None:
    from lmms_textweighted.report.picture import draw  # matplotlib is slow to import

    write_json(_target(experiment, "json"), data)
    draw(_target(experiment, "png"), data)


def _target(experiment: Experiment, ending: str) -> Path:
    return experiment.output_dir / f"fastv_textweighted_layer{experiment.pruning_layer}_experiment.{ending}"


def _meta(
    experiment: Experiment, llava: PrunedLlava, documents: Documents, seen: list[Document], layers: int
) -> dict[str, Any]:
    digest = hashlib.sha256("".join(document.digest for document in seen).encode()).hexdigest()
    choices = [len(document.fields["choices"]) for document in seen if document.fields.get("choices")]
    return {
        "checkpoint": experiment.model_path,
        "weights": weights_fingerprint(llava.model),
        "dtype": str(llava.model.dtype).removeprefix("torch."),
        "device": llava.model.device.type,
        "decoder_layers": layers,
        "task": experiment.task,
        "selection": f"the first {len(seen)} documents of the task, none left out",
        "num_samples": len(seen),
        "documents_sha256": digest,
        "metric": documents.metric,
        "chance": fmean(1 / count for count in choices) if len(choices) == len(seen) else None,
        "conv_mode": experiment.conv_mode,
        "prompt_example": render(experiment.conv_mode, [seen[0].message], llava.processor) if seen else None,
        "pruning_layer": experiment.pruning_layer,
        "layer_numbering": "from 0; image tokens leave after this layer",
        "seed": experiment.seed,
        "rank_note": (
            "a causal image-to-image block is triangular with a positive diagonal, so its exact rank is the number of "
            "kept tokens; the numeric rank counts what the tolerance of 1e-6 hides"
        ),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
    }


def _table(data: dict[str, Any]) -> Table:
    """Accuracy by budget and strategy; with the cost of a budget where it is the same for every strategy."""
    blocks = data["strategies"]
    pruned = [block for name, block in blocks.items() if name != "none"] or list(blocks.values())
    budgets = sorted({count for block in blocks.values() for count in block["tokens"]}, reverse=True)
    costs = pruned[0] if all(block["equivalent_tokens"] == pruned[0]["equivalent_tokens"] for block in pruned) else None
    table = Table(title=f"accuracy of the pruned model, {data['meta']['num_samples']} questions")
    for heading in ("image tokens", *(("equivalent", "FLOPs") if costs else ()), *blocks):
        table.add_column(heading, justify="right", overflow="fold")
    for budget in budgets:
        row = [str(budget)]
        if costs:
            if budget in costs["tokens"]:
                place = costs["tokens"].index(budget)
                row += [f"{costs['equivalent_tokens'][place]:.0f}", f"{costs['flops_ratio'][place]:.0%}"]
            else:
                row += ["", ""]
        for block in blocks.values():
            row.append(f"{block['accuracies'][block['tokens'].index(budget)]:.1%}" if budget in block["tokens"] else "")
        table.add_row(*row)
    return table


def _quiet() -> None:
    """One progress bar is enough: silence those of the libraries, and lmms-eval's debug lines."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logger.remove()
    logger.add(sys.stderr, level="WARNING")


def _whole(name: str, value: Any) -> Any:
    """A whole number, or None where the option may be left out."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise InputError(f"{name} is {value!r}: give a whole number")
    return value


def _joined(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
