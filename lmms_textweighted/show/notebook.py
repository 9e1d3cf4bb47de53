"""A trace that shows itself: from a block that anyone opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.trace import Trace
from lmms_textweighted.errors import InputError
from lmms_textweighted.families.known import family_of
from lmms_textweighted.methods import label_of
from lmms_textweighted.pictures import open_picture
from lmms_textweighted.show.look import unseen
from lmms_textweighted.show.shown import Shown
from lmms_textweighted.view.build import given_to, strategy_view
from lmms_textweighted.view.record import DocumentView


def show_trace(
    trace: Trace,
    model: Any,
    processor: Any,
    inputs: Any,
    images: Any,
    *,
    answer: str = "",
    row: int = 0,
    prefill: int = -1,
) -> Shown:
    """What a `prune` block kept of a prompt's pictures: shows itself in a notebook, and has `figure` and `save`.

        inputs = processor(images=image, text=prompt, return_tensors="pt")
        with prune(model, plan) as trace:
            output = model.generate(**inputs, max_new_tokens=16)
        show_trace(trace, model, processor, inputs, image)

    inputs: what the processor made and the model was called with, not yet taken apart. images: the pictures that it was
    made of: one, a list, or a list for each prompt of the batch; PIL pictures or paths. answer: is written beside it.
    row: of the batch. prefill: which of those in the trace, the last one by default.

    Raises InputError where trace, inputs and pictures are not of one another, PlanError for a model of no known family.
    """
    family = family_of(model, processor)
    rows = len(inputs["input_ids"])
    if not 0 <= row < rows:
        raise InputError(f"row is {row}, but the batch has {rows}: give 0 to {rows - 1}")
    documents = trace.documents
    batches, rest = divmod(len(documents), rows)
    if rest or not -batches <= prefill < batches:
        raise InputError(
            f"the trace has {len(documents)} documents, which is prefill {prefill} of no batch of {rows}: give the "
            f"inputs that the model was called with inside of the block"
        )
    pictures = _pictures(images, rows)
    given = given_to(family, processor, inputs, [[picture.size for picture in some] for some in pictures])[row]
    if not given.pictures:
        raise InputError(f"row {row} has no picture: there is nothing to see")
    document = documents[(prefill % batches) * rows + row]
    plan: Plan = document.plan
    strategy = strategy_view(given, document, plan.name, label_of(plan.name), answer=answer)
    text = "".join(given.pieces[given.after :]).strip()
    known = unseen("", text)
    view = DocumentView(
        known.uid,
        text,
        (),
        None,
        tuple(picture.geometry for picture in given.pictures),
        given.pieces,
        given.after,
        (strategy,),
    )
    return Shown(view, given.images())


def _pictures(images: Any, rows: int) -> list[list[Any]]:
    """For each row its pictures. Raises InputError as `open_picture` does, and where one cannot tell whose they are."""
    given = list(images) if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    nested = [isinstance(entry, Sequence) and not isinstance(entry, str) for entry in given]
    if all(nested) and len(given) == rows:
        found = [list(entry) for entry in given]
    elif rows == 1 and not any(nested):
        found = [given]
    elif len(given) == rows and not any(nested):
        found = [[entry] for entry in given]
    else:
        raise InputError(f"images has {len(given)} entries for a batch of {rows}: give a list for each prompt")
    return [[entry if hasattr(entry, "size") else open_picture(entry) for entry in some] for some in found]
