"""How transformers hands a KV cache from module to module: as `cache` since 5.24, as `past_key_values` before."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import LlamaModel

OLD_NAME = "past_key_values"
# The name that this transformers uses, for arguments and outputs alike.
CACHE_NAME = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else OLD_NAME


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among a module's keyword arguments, under either name; None without one."""
    cache = arguments.get(CACHE_NAME)
    return arguments.get(OLD_NAME) if cache is None else cache
