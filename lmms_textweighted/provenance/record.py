"""What every result holds of its making, under `provenance`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmms_textweighted.provenance.software import software


def provenance(state: Mapping[str, Any]) -> dict[str, Any]:
    """`software`: see `software.software`; `model`: `model.model_state`, as given; `command`: see `command_line`."""
    return {"software": software(), "model": state, "command": command_line()}


def command_line() -> str:
    """The command that runs, as a shell would take it; of a program on disk its name alone, of a module `python -m`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None:
        return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return shlex.join(["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])
