"""What every result holds of its making, under `provenance`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from lmms_textweighted.inference import PrunedLlava
from lmms_textweighted.provenance.model import model_state
from lmms_textweighted.provenance.software import software


def provenance(llava: PrunedLlava) -> dict[str, Any]:
    """`software`: see `software.software`; `model`: see `model.model_state`; `command`: see `command_line`."""
    return {"software": software(), "model": model_state(llava), "command": command_line()}


def command_line() -> str:
    """The command that runs, as a shell would take it; of a program on disk its name alone, of a module `python -m`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None:
        return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return shlex.join(["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])
