"""The machine: accelerator, attention kernels, the hub and the cache folder."""

from __future__ import annotations

import os

from lmms_textweighted.doctor.rows import BAD, OK, WARN, Row

GIB = 2**30


def accelerator() -> Row:
    """What torch can compute on, and its memory in GiB."""
    import torch

    if torch.cuda.is_available():
        cards = []
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            cards.append(f"{torch.cuda.get_device_name(number)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")
        return Row("accelerator", OK, "; ".join(cards))
    if torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        return Row("accelerator", OK, f"Apple GPU (device=mps), {total / GIB:.1f} GiB")
    return Row("accelerator", OK, f"none: the CPU computes, with {torch.get_num_threads()} threads")


def kernels() -> Row:
    """What `attn_implementation` can be."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    names = ["eager"]
    if hasattr(torch.nn.functional, "scaled_dot_product_attention"):
        names.insert(0, "sdpa")
    if is_flash_attn_2_available():
        names.append("flash_attention_2")
    return Row("attention", OK, ", ".join(names))


def hub() -> Row:
    """Whether the hub can be connected to; not asked under HF_HUB_OFFLINE."""
    from lmms_textweighted.hub import endpoint, is_offline, no_connection

    if is_offline():
        return Row("hub", OK, "not asked: HF_HUB_OFFLINE is set")
    why = no_connection()
    if why is None:
        return Row("hub", OK, endpoint())
    advice = (
        "what is in the cache, local folders and pretrained=tiny work without it; HF_HUB_OFFLINE=1 spares the "
        "question. Behind a proxy or a mirror: set HTTPS_PROXY or HF_ENDPOINT; on a slow line HF_HUB_ETAG_TIMEOUT=10"
    )
    return Row("hub", WARN, f"no connection to {endpoint()}: {why}", advice)


def cache() -> Row:
    """Whether records of runs can be written."""
    from lmms_textweighted.errors import InputError
    from lmms_textweighted.harness.output import check_writable
    from lmms_textweighted.paths import cache_folder

    advice = "set LMMS_TEXTWEIGHTED_CACHE to a folder that can be written"
    try:
        folder = cache_folder()
        check_writable(folder)
    except InputError as error:
        return Row("cache folder", BAD, str(error).removeprefix("output folder "), advice)
    home = os.path.expanduser("~")
    return Row("cache folder", OK, str(folder).replace(home, "~", 1) if home != "/" else str(folder))
