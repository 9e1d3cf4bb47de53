"""What transformers' `generate` can be asked for that a pruned prefill and a shorter KV cache do not allow."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmms_textweighted.engine.splice import replaced
from lmms_textweighted.errors import PlanError

_CUTS = "it cuts the KV cache by the length of the whole sequence"
# Option of `generate` or of its generation config -> why not.
_UNSUPPORTED = {
    "prefill_chunk_size": "chunked prefill is not supported, the whole prompt is scored at once",
    "assistant_model": f"assisted decoding is not supported, {_CUTS}",
    "prompt_lookup_num_tokens": f"prompt lookup is not supported, {_CUTS}",
    "use_mtp": f"multi-token prediction is not supported, {_CUTS}",
    "assistant_early_exit": "early exit is not supported, its layers see the whole sequence",
}


@contextmanager
def refusing(model: Any) -> Iterator[None]:
    """While open, `model.generate` raises PlanError for an option that would act otherwise than asked for."""
    generate = getattr(model, "generate", None)
    if generate is None:
        yield
        return

    @functools.wraps(generate)
    def watched(*args: Any, **kwargs: Any) -> Any:
        config = kwargs.get("generation_config") or getattr(model, "generation_config", None)
        for name, reason in _UNSUPPORTED.items():
            value = kwargs.get(name, getattr(config, name, None))
            if value:
                raise PlanError(f"generate is asked for {name}: inside prune {reason}: leave it out")
        return generate(*args, **kwargs)

    with replaced(model, "generate", watched):
        yield
