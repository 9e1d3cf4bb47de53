"""lmms-eval's generation kwargs -> how we decode. The dict is never changed: its cache key is made again later."""

from __future__ import annotations

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


def split_generation_kwargs(kwargs: dict[str, Any]) -> tuple[Decoding, bool]:
    """(decoding, whether the task asks for ranks). Keys that have no meaning here are warned of once.

    `do_sample: false` decodes greedily whatever the temperature; without it a temperature above 0 samples. `do_sample:
    true` without a temperature samples at 1.
    """
    for name in sorted(set(kwargs) - _UNDERSTOOD - _WARNED):
        _WARNED.add(name)
        logger.warning(f"generation kwarg {name!r} has no meaning for llava_textweighted and is not used")
    until = kwargs.get("until") or ()
    if isinstance(until, str):
        until = (until,)
    if not all(isinstance(stop, str) for stop in until):
        raise InputError(f"generation kwarg until is {until!r}: give a string or a list of strings")
    temperature = float(kwargs.get("temperature") or 0.0)
    if kwargs.get("do_sample") and kwargs.get("temperature") is None:
        temperature = 1.0
    decoding = Decoding(
        max_new_tokens=int(kwargs.get("max_new_tokens") or kwargs.get("max_gen_toks") or DEFAULT_MAX_NEW_TOKENS),
        temperature=0.0 if kwargs.get("do_sample") is False else temperature,
        top_p=kwargs.get("top_p"),
        top_k=kwargs.get("top_k"),
        num_beams=int(kwargs.get("num_beams") or 1),
        repetition_penalty=kwargs.get("repetition_penalty"),
        until=tuple(until),
    )
    return decoding, bool(kwargs.get(RANKS_KEY, False))


def asked_aspect_ratio(kwargs: dict[str, Any]) -> str | None:
    """The task's own `image_aspect_ratio`; None where it names none, or `original`, which leaves it to the checkpoint.

    lmms-eval's `llava` gives way to the checkpoint's config there, too. Raises InputError for an unknown name.
    """
    name = kwargs.get(ASPECT_KEY)
    return None if name in (None, "original") else check_aspect_ratio(name)
