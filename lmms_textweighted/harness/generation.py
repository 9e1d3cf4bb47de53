"""lmms-eval's generation kwargs -> how we decode. The dict is never changed: its cache key is made again later."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from loguru import logger

from lmms_textweighted.errors import InputError
from lmms_textweighted.families.images import check_aspect_ratio
from lmms_textweighted.inference import DEFAULT_MAX_NEW_TOKENS, Decoding

RANKS_KEY = "ranks"
ASPECT_KEY = "image_aspect_ratio"
_UNDERSTOOD = {
    "max_new_tokens",
    "max_gen_toks",
    "temperature",
    "do_sample",
    "top_p",
    "top_k",
    "num_beams",
    "repetition_penalty",
    "until",
    RANKS_KEY,
    ASPECT_KEY,
}
_WARNED: set[str] = set()


def split_generation_kwargs(
    kwargs: dict[str, Any], max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
) -> tuple[Decoding, bool]:
    """(decoding, whether the task asks for ranks). Keys that have no meaning here are warned of once.

    max_new_tokens: where the task does not say it.

    `do_sample: false` decodes greedily whatever the temperature; without it a temperature above 0 samples. `do_sample:
    true` without a temperature samples at 1. None is "not given"; 0 is a value. Raises InputError for one that cannot
    be.
    """
    for name in sorted(set(kwargs) - _UNDERSTOOD):
        warn_once(f"generation kwarg {name!r} has no meaning for llava_textweighted and is not used")
    until = kwargs.get("until")
    until = () if until is None else (until,) if isinstance(until, str) else until
    if not isinstance(until, list | tuple) or not all(isinstance(stop, str) for stop in until):
        raise InputError(f"generation kwarg until is {until!r}: give a string or a list of strings")
    sample = kwargs.get("do_sample")
    if sample is not None and not isinstance(sample, bool):
        raise InputError(f"generation kwarg do_sample is {sample!r}: give true or false")
    temperature = _number(kwargs, "temperature", 1.0 if sample else 0.0, least=0)
    new = "max_gen_toks" if kwargs.get("max_new_tokens") is None else "max_new_tokens"
    top_k = _number(kwargs, "top_k", None, least=0, whole=True)
    penalty = _number(kwargs, "repetition_penalty", None, least=0)
    if penalty == 0:
        raise InputError("generation kwarg repetition_penalty is 0: give a number above 0, 1 changes nothing")
    decoding = Decoding(
        max_new_tokens=_number(kwargs, new, max_new_tokens, least=1, whole=True),
        temperature=0.0 if sample is False else temperature,
        top_p=_number(kwargs, "top_p", None, least=0, most=1),
        top_k=top_k,
        num_beams=_number(kwargs, "num_beams", 1, least=1, whole=True),
        repetition_penalty=penalty,
        until=tuple(until),
    )
    contradiction = _contradiction(kwargs, decoding)
    if contradiction:
        warn_once(contradiction)
    return decoding, bool(kwargs.get(RANKS_KEY, False))


def check_acts(kwargs: dict[str, Any], decoding: Decoding, asked: Sequence[dict[str, Any]]) -> None:
    """Raise InputError when a user asked for sampling (`--gen_kwargs`), and the task's own kwargs keep it greedy.

    kwargs: the task's, with the user's in them. asked: the user's alone, one a run. lmms-eval says that these win.
    """
    if decoding.temperature > 0:
        return
    for given in asked:
        for name in ("temperature", "do_sample", "top_p", "top_k"):
            value = given.get(name)
            if value and value == kwargs.get(name) and not (name == "top_p" and value == 1):
                raise InputError(
                    f"gen_kwargs asks for {name}={value}, but with {_greedy_by(kwargs)} the answers are greedy: give "
                    f"both, as in temperature=0.8,do_sample=True, or leave it out"
                )


def _contradiction(kwargs: dict[str, Any], decoding: Decoding) -> str | None:
    if decoding.temperature > 0 or not (kwargs.get("temperature") or kwargs.get("do_sample")):
        return None
    said = f"temperature={kwargs.get('temperature')}" if kwargs.get("temperature") else "do_sample=True"
    return f"the task asks for {said} and for {_greedy_by(kwargs)}: it is answered greedily"


def _greedy_by(kwargs: dict[str, Any]) -> str:
    return "do_sample=False" if kwargs.get("do_sample") is False else f"temperature={kwargs.get('temperature', 0)}"


def _number(
    kwargs: dict[str, Any], name: str, default: Any, *, least: float, most: float = math.inf, whole: bool = False
) -> Any:
    """A number of the kwargs, or the default where it is not given. Raises InputError for anything else."""
    value = kwargs.get(name)
    if value is None:
        return default
    kind = "whole number" if whole else "number"
    try:
        number = float(value)
        if isinstance(value, bool) or not least <= number <= most or math.isinf(number) or (whole and number % 1):
            raise ValueError
    except (TypeError, ValueError):
        limits = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise InputError(f"generation kwarg {name} is {value!r}: give a {kind} {limits}") from None
    return int(number) if whole else number


def warn_once(text: str) -> None:
    """Once: the same kwargs come with every batch."""
    if text not in _WARNED:
        _WARNED.add(text)
        logger.warning(text)


def asked_aspect_ratio(kwargs: dict[str, Any]) -> str | None:
    """The task's own `image_aspect_ratio`; None where it names none, or `original`, which leaves it to the checkpoint.

    lmms-eval's `llava` gives way to the checkpoint's config there, too. Raises InputError for an unknown name.
    """
    name = kwargs.get(ASPECT_KEY)
    return None if name in (None, "original") else check_aspect_ratio(name)
