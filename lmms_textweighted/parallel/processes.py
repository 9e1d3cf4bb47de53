"""Several processes of one run, as accelerate and torchrun start them: which one this is, and where its model goes.

The launcher says it in the environment: RANK and WORLD_SIZE, and for this machine's share LOCAL_WORLD_SIZE. Without
them a run is one process, and nothing here costs it anything.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from lmms_textweighted.errors import InputError, first_line

if TYPE_CHECKING:
    from lmms_textweighted.families import LoadOptions

Item = TypeVar("Item")

# As long as lmms-eval's own: a process waits while another answers its share. It does not find the dead: the launcher
# ends a machine's other processes, and `lmms_textweighted.parallel.watch` those of other machines.
COLLECTIVE_TIMEOUT = timedelta(seconds=60000)


def world() -> tuple[int, int]:
    """(rank, number of processes) as the launcher says: (0, 1) without one."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def named(message: str) -> str:
    """The message, headed by its process where there are several."""
    rank, size = world()
    return f"rank {rank} of {size}: {message}" if size > 1 else message


def join() -> Any:
    """accelerate's state of this process, one of several. Raises InputError as `check_joined` does."""
    from accelerate import Accelerator  # not PartialState, which does not read ACCELERATE_USE_CPU
    from accelerate.utils import InitProcessGroupKwargs

    state = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)])
    check_joined(state)
    return state


def check_joined(state: Any) -> None:
    """Raise InputError when accelerate sees another number of processes than the launcher started.

    Each would then take itself for the only one, or wait for others that never come.
    """
    _, size = world()
    if state.num_processes != size:
        raise InputError(
            f"the launcher started {size} processes, but accelerate runs {state.num_processes}: without a GPU set "
            f"ACCELERATE_USE_CPU=true"
        )


def placed(options: LoadOptions, state: Any) -> LoadOptions:
    """Options that put this process's model on a device of its own.

    Raises InputError for a device that all processes would share, and for a device_map, which lays one model over all
    cards that a process sees, beside other processes of the same machine.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    if state.num_processes == 1:
        return options
    if options.device_map:
        if here == 1:
            return options
        raise InputError(
            f"device_map is {options.device_map!r} with {here} processes on this machine: it lays one model over all "
            f"cards, so it goes with one process: leave it out, or start one process a machine"
        )
    if options.device in (None, state.device.type):
        return replace(options, device=str(state.device))
    if options.device != "cpu" and here > 1 and options.device != str(state.device):
        raise InputError(
            f"device is {options.device!r} with {here} processes on this machine, which would share it: leave it out, "
            f"and each takes a card of its own"
        )
    return options


def share(count: int) -> range:
    """This process's part of 0 … count - 1: every n-th, as lmms-eval deals documents."""
    rank, size = world()
    return range(rank, count, size)


def gather(items: list[Item]) -> list[Item]:
    """The items of all processes, in every process."""
    _, size = world()
    if size == 1:
        return items
    from accelerate.utils import gather_object

    try:
        return gather_object(items)
    except RuntimeError as error:  # torch.distributed's errors are all of this kind
        raise InputError(f"another process ended before its answers came: {first_line(error)}") from error
