"""Lists of budgets, layers and seeds as a person writes them: `576:16:-10`, `576,192,64`, `all`."""

from __future__ import annotations

from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.names import SHARES


def parse_tokens(text: str) -> list[int]:
    """`576:16:-10` -> 576, 566, … 16 (both ends counted); `576,192,64` -> those; both may be mixed. Largest first.

    0 is the cut-off: no image token stays. Raises InputError for anything that gives no whole numbers of at least 0.
    """
    found = _numbers("tokens", text, "576,192,64", "576:16:-10")
    if min(found) < 0:
        raise InputError(f"tokens is {text!r}: {min(found)} tokens cannot be kept, give numbers of at least 0")
    return sorted(set(found), reverse=True)


def parse_budgets(text: str, kind: str) -> list[int] | list[float]:
    """`--tokens` of any kind of budget (`methods.budget.Budget`), largest first: counts as in `parse_tokens`, or shares
    in (0, 1], `0.5,0.25`. Raises InputError for anything else."""
    if kind not in SHARES:
        return parse_tokens(text)
    try:
        found = sorted({float(part) for part in str(text).split(",")}, reverse=True)
    except ValueError:
        found = []
    if not found or not all(0 < share <= 1 for share in found):
        raise InputError(f"tokens is {text!r}: of {kind} give shares above 0 and at most 1, as in 0.5,0.25")
    return found


def parse_layers(text: str) -> list[int] | None:
    """`2` -> [2]; `0,1,2,5` and `0:3` as in `parse_tokens`, smallest first; `all` -> None.

    Raises InputError for anything else that is no number, and for one below 0.
    """
    if str(text) == "all":
        return None
    found = _numbers("pruning_layer", text, "0,1,2,3", "0:3, or all")
    if min(found) < 0:
        raise InputError(f"pruning layer is {min(found)}: give decoder layers' numbers, counted from 0, or all")
    return sorted(set(found))


def parse_seeds(text: str) -> list[int]:
    """`0` -> [0]; `0,1,2` and `0:2` as in `parse_tokens`, in the order given, each once. Raises InputError else."""
    return list(dict.fromkeys(_numbers("seed", text, "0,1,2", "0:2")))


def parse_samples(text: str) -> int | None:
    """A number of at least 1, or `all` -> None. Raises InputError for anything else."""
    if str(text) == "all":
        return None
    if not str(text).isdigit() or int(text) < 1:
        raise InputError(f"num_samples is {text!r}: give a whole number of at least 1, or all")
    return int(text)


def _numbers(name: str, text: str, listed: str, ranged: str) -> list[int]:
    found: list[int] = []
    for part in str(text).split(","):
        bounds = part.strip().split(":")
        try:
            numbers = [int(bound) for bound in bounds]
        except ValueError:
            raise InputError(f"{name} is {text!r}: give whole numbers ({listed}) or a range ({ranged})") from None
        if len(numbers) == 1:
            found += numbers
            continue
        if len(numbers) == 2:
            numbers.append(-1 if numbers[1] < numbers[0] else 1)
        start, stop, step = numbers[:3]
        if len(numbers) > 3 or step == 0 or (stop - start) * step < 0:
            raise InputError(f"{name} is {text!r}: the range {part!r} is empty, write start:stop:step as in {ranged}")
        found += range(start, stop + (1 if step > 0 else -1), step)
    return found
