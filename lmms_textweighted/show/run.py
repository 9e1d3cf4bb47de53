"""`lmms-textweighted show`: pictures and a question, or a task's document -> answers, and one picture a strategy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from lmms_textweighted.engine.text_tower import no_text_tower
from lmms_textweighted.errors import InputError, PromptError
from lmms_textweighted.experiment.names import AXES
from lmms_textweighted.families import LoadOptions, load
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.harness.output import check_writable
from lmms_textweighted.harness.quiet import quiet_libraries
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.page import Documents as DocumentsSection
from lmms_textweighted.page import Page, write_page
from lmms_textweighted.page import Shown as OnPage
from lmms_textweighted.page.pictures import data_uri
from lmms_textweighted.pictures import open_picture
from lmms_textweighted.prompts import Message, check_template, user_message
from lmms_textweighted.show.look import geometry_of, look, plans_for, unseen
from lmms_textweighted.show.question import asked_for, letter_of, options_of
from lmms_textweighted.show.shown import Shown, names_of
from lmms_textweighted.view.files import NAME, write_views
from lmms_textweighted.view.record import DocumentView


@dataclass(frozen=True)
class Asking:
    """What the command was asked. inputs: pictures and then the question; none where a task's document is named."""

    inputs: Sequence[str] = ()
    choices: str | None = None
    target: str | None = None
    task: str | None = None
    doc: int | None = None
    strategies: str = "text_weighted,fastv,random"
    keep: float = 64
    budget: str = "keep_tokens"
    pruning_layer: int | None = None
    text_scope: str = "after"
    model_path: str = "tiny"
    conv_mode: str | None = None
    text_tower: str | None = None
    seed: int = 0
    max_new_tokens: int = 16
    load_options: LoadOptions = field(default_factory=LoadOptions)
    output: Path = Path("runs/show")
    html: bool = False


@dataclass(frozen=True)
class _Question:
    """What is asked, before a model is there."""

    message: Message
    document: DocumentView
    decoding: Decoding
    judge: Callable[[str], tuple[float | None, bool | None]]


def run_show(asking: Asking) -> Shown:
    """Answer, write the pictures and print a table. Raises InputError or PlanError, one line each."""
    quiet_libraries()
    strategies = [name.strip() for name in asking.strategies.split(",") if name.strip()]
    if asking.budget not in AXES:
        raise InputError(f"budget is {asking.budget!r}: give one of {', '.join(AXES)}")
    keep = _budget(asking)
    more: dict[str, Any] = {"pruning_layer": asking.pruning_layer, "text_scope": asking.text_scope}
    # What is wrong with names and numbers is said before a model is loaded; solved budgets need its sizes.
    early = (
        ("keep_ratio", min(max(keep, 0.01), 1.0))
        if asking.budget in ("flops_ratio", "equivalent_tokens")
        else (asking.budget, keep)
    )
    early_plans = plans_for(strategies, early[1], early[0], **more)
    needing = next((one for one in early_plans if one.plan.reads_text), None)
    if needing is not None and asking.text_tower is None:
        raise no_text_tower(needing.strategy)
    question = _of_task(asking) if asking.task is not None else _of_pictures(asking)
    check_writable(asking.output)
    template = asking.conv_mode and check_template(asking.conv_mode)
    llava = PrunedLlava(*load(asking.model_path, asking.load_options), template=template, seed=asking.seed)
    asked = plans_for(strategies, keep, asking.budget, **more, geometry=geometry_of(llava.model))
    llava = llava.with_text_tower(asking.text_tower, (one.plan for one in asked))
    for one in asked:
        one.plan.check(llava.model.config.get_text_config().num_hidden_layers, llava.tokens_per_image)
    try:
        shown = look(llava, [question.message], asked, question.decoding, question.document, judge=question.judge)
    except PromptError as error:
        raise InputError(str(error)) from error
    _write(shown, asking)
    return shown


def _budget(asking: Asking) -> float:
    if asking.budget == "keep_tokens":
        if asking.keep != int(asking.keep):
            raise InputError(f"keep is {asking.keep}, but it counts image tokens: give a whole number, or --budget")
        return int(asking.keep)
    return asking.keep


def _of_task(asking: Asking) -> _Question:
    if asking.inputs:
        raise InputError(f"task is {asking.task!r}, but {asking.inputs[0]!r} is given, too: leave one of them out")
    for name in ("choices", "target"):
        if getattr(asking, name) is not None:
            raise InputError(f"{name} is {getattr(asking, name)!r}, but a task's document has its own: leave it out")
    documents = Documents.of_task(str(asking.task), None, single_prediction_prompt=False)
    number = asking.doc or 0
    if not 0 <= number < len(documents):
        raise InputError(
            f"doc is {number}, but task {asking.task!r} has {len(documents)} documents: give 0 to {len(documents) - 1}"
        )
    document = documents[number]

    def judge(answer: str) -> tuple[float | None, bool | None]:
        score, exact = documents.judge(document, answer)
        return score, exact or score >= 1

    view = unseen(
        document.digest[:16],
        "".join(str(value) for kind, value in document.message.content if kind == "text").strip(),
        [str(choice) for choice in document.fields.get("choices") or ()],
        document.target,
        task=asking.task,
        document=number,
    )
    return _Question(document.message, view, documents.decoding, judge)


def _of_pictures(asking: Asking) -> _Question:
    if asking.doc is not None:
        raise InputError(f"doc is {asking.doc}, but no task is given: name one with --task")
    if len(asking.inputs) < 2:
        raise InputError("give the path of a picture and then a question, or --task and --doc")
    *paths, text = asking.inputs
    images = [open_picture(path) for path in paths]
    choices = options_of(asking.choices)
    prompt, target = asked_for(text, choices), letter_of(asking.target, choices)
    digest = hashlib.sha256(prompt.encode())
    for image in images:
        digest.update(image.tobytes())

    def judge(answer: str) -> tuple[float | None, bool | None]:
        right = None if target is None else answer.strip().rstrip(".") == target.strip().rstrip(".")
        return None if right is None else float(right), right

    view = unseen(digest.hexdigest()[:16], text, choices, target, pictures=[Path(path).name for path in paths])
    return _Question(user_message(prompt, images), view, Decoding(max_new_tokens=asking.max_new_tokens), judge)


def _write(shown: Shown, asking: Asking) -> None:
    console = Console()
    try:
        written = shown.save(asking.output)
        write_views(asking.output / NAME, [shown.view])
        if asking.html:
            page = asking.output / "show.html"
            write_page(page, page_of(shown, asking))
            written.append(page)
    except OSError as error:
        raise InputError(
            f"output folder {str(asking.output)!r} cannot be written ({error.strerror or error}): name another"
        ) from error
    # Long names and answers go on in the next line; figures, and whether it is right, are never cut.
    heads = ("tokens", "equivalent", "FLOPs", "prefill")
    table = Table(
        Column("strategy", overflow="fold", min_width=12),
        Column("answer", overflow="fold", min_width=8),
        Column("", no_wrap=True),
        *(Column(head, justify="right", min_width=min(7, len(head))) for head in heads),
    )
    total = len(shown.view.places)
    for name, strategy in zip(names_of(shown.view), shown.view.strategies, strict=True):
        figures = strategy.figures
        table.add_row(
            name,
            _plain(strategy.answer),
            {True: "right", False: "wrong", None: ""}[strategy.right],
            f"{figures['kept_tokens']:.0f}/{total}",
            f"{figures['equivalent_tokens']:.0f}",
            f"{figures['flops_ratio']:.0%}",
            f"{figures['prefill_seconds'] * 1000:.0f} ms",
        )
    console.print(_plain(shown.view.question), soft_wrap=True)
    console.print(table)
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True, markup=False, highlight=False)


def page_of(shown: Shown, asking: Asking) -> Page:
    """The document in the page that all commands write."""
    images = [[data_uri(image) for image in picture] for picture in shown.images]
    return Page(
        title="What stays of a picture",
        subtitle=shown.view.question,
        sections=[DocumentsSection("Documents", [OnPage(shown.view, images)])],
        facts=[("model", asking.model_path), ("budget", f"{asking.budget} {asking.keep:g}")],
    )


def _plain(text: str) -> Any:
    """A text that is no markup, whatever it looks like."""
    from rich.text import Text

    return Text("".join(char if char.isprintable() or char == "\n" else " " for char in text))
