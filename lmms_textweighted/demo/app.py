"""The page of `lmms-textweighted demo`: a picture, a question, strategies and a budget in; pictures and times out."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from lmms_textweighted.errors import InputError, TextweightedError
from lmms_textweighted.inference import Decoding, PrunedLlava, geometry_of
from lmms_textweighted.methods import find_method, method_names
from lmms_textweighted.pictures import open_picture
from lmms_textweighted.prompts import user_message
from lmms_textweighted.show.look import look, plans_for, unseen
from lmms_textweighted.show.question import asked_for, options_of
from lmms_textweighted.show.shown import Shown
from lmms_textweighted.upstream.known_bad import installed

LEAST_LARGEST = 1024  # of the budget, where the number of a picture's tokens depends on the picture
_HEADS = ("strategy", "image tokens", "equivalent tokens", "FLOPs", "prefill", "whole answer", "answer")
ROUNDS = 3  # of which the times are the medians
_TITLE = "What stays of a picture"


def check_gradio() -> None:
    """Raise InputError where gradio is not installed."""
    if installed("gradio") is None:
        raise InputError("the demo needs gradio, which is not installed: pip install 'lmms-textweighted[demo]'")


def strategies_for(llava: PrunedLlava) -> list[str]:
    """The methods that can be chosen: those that remove something, and need nothing that the model has not."""
    found = []
    for name in method_names():
        method = find_method(name)
        if name == "none" or not method.takes_budget:
            continue
        try:
            plan = method.plan(keep_ratio=0.5, geometry=geometry_of(llava.model))
            llava.check_pictures(plan)
        except TextweightedError:
            continue
        if not plan.reads_text:
            found.append(name)
    return found


def answered(
    llava: PrunedLlava,
    path: str | None,
    question: str,
    choices: str,
    strategies: Sequence[str],
    keep: float,
    *,
    max_new_tokens: int,
) -> str:
    """The page's lower half: what went wrong in one line, or times and pictures. Every text in it is escaped."""
    try:
        if not path:
            raise InputError("no picture is given: put one into the field above")
        if not question.strip():
            raise InputError("the question is empty: ask something")
        picture = open_picture(path)
        options = options_of(choices or None)
        message = user_message(asked_for(question, options), [picture])
        asked = plans_for(strategies, int(keep), geometry=geometry_of(llava.model))
        document = unseen("", question, options)
        decoding = Decoding(max_new_tokens=max_new_tokens)
        shown = look(llava, [message], asked, decoding, document, rounds=ROUNDS)
        return table(shown) + shown._repr_html_()
    except TextweightedError as error:
        # The temporary path of an upload is nothing to a user.
        said = str(error).replace(repr(str(path)), "the picture")
        return f'<p role="alert"><strong>{html.escape(said)}</strong></p>'


def table(shown: Shown) -> str:
    """Costs and measured times, a row a strategy."""
    total = len(shown.view.places)
    rows = []
    for strategy in shown.view.strategies:
        figures = strategy.figures
        whole = figures["prefill_seconds"] + figures["decode_seconds"]
        cells = (
            strategy.label,
            f"{figures['kept_tokens']:.0f} of {total}",
            f"{figures['equivalent_tokens']:.0f}",
            f"{figures['flops_ratio']:.0%}",
            f"{figures['prefill_seconds'] * 1000:.0f} ms",
            f"{whole * 1000:.0f} ms",
            strategy.answer,
        )
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    heads = "".join(f"<th scope='col'>{head}</th>" for head in _HEADS)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def build(llava: PrunedLlava, name: str, *, max_new_tokens: int = 64) -> Any:
    """The page as gradio's Blocks. name: what it calls the model."""
    import gradio

    known = strategies_for(llava)
    most = llava.tokens_per_image or LEAST_LARGEST

    def answer(path: str | None, question: str, choices: str, strategies: list[str], keep: float) -> str:
        return answered(llava, path, question, choices, strategies, keep, max_new_tokens=max_new_tokens)

    with gradio.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.HTML(f"<h1>{_TITLE}</h1><p>Model: {html.escape(name)}</p>")
        with gradio.Row():
            # As it is: what is transparent becomes white, as everywhere here, and not black.
            picture = gradio.Image(label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"])
            with gradio.Column():
                question = gradio.Textbox(label="Question", lines=2)
                choices = gradio.Textbox(label="Choices, with commas between them (may stay empty)")
                strategies = gradio.Dropdown(
                    known,
                    value=[each for each in ("text_weighted", "fastv", "random") if each in known],
                    multiselect=True,
                    label="Strategies",
                )
                keep = gradio.Slider(
                    1, most, value=min(64, most), step=1, label="Image tokens that stay, of each picture"
                )
                button = gradio.Button("Answer", variant="primary")
        seen = gradio.HTML(label="What stays")
        inputs = [picture, question, choices, strategies, keep]
        for event in (button.click, question.submit):
            event(answer, inputs, seen, concurrency_limit=1, concurrency_id="the model", api_visibility="private")
    return page
