"""Lists of budgets and counts as a person writes them: `576:16:-10`, `576,192,64`, `all`."""

from __future__ import annotations

from lmms_textweighted.errors import InputError


def parse_tokens(text: str) -> list[int]:
    """`576:16:-10` -> 576, 566, … 16 (both ends counted); `576,192,64` -> those; both may be mixed. Largest first.

    Raises InputError for anything that gives no whole numbers of at least 1.
    """
    found: list[int] = []
    for part in str(text).split(","):
        bounds = part.strip().split(":")
        try:
            numbers = [int(bound) for bound in bounds]
        except ValueError:
            raise InputError(f"tokens is {text!r}: give numbers (576,192,64) or a range (576:16:-10)") from None
        if len(numbers) == 1:
            found += numbers
            continue
        if len(numbers) == 2:
            numbers.append(-1 if numbers[1] < numbers[0] else 1)
        start, stop, step = numbers[:3]
        if len(numbers) > 3 or step == 0 or (stop - start) * step < 0:
            raise InputError(f"tokens is {text!r}: the range {part!r} is empty, write start:stop:step as in 576:16:-10")
        found += range(start, stop + (1 if step > 0 else -1), step)
    if min(found) < 1:
        raise InputError(f"tokens is {text!r}: {min(found)} tokens cannot be kept, give numbers of at least 1")
    return sorted(set(found), reverse=True)


def parse_samples(text: str) -> int | None:
    """A number of at least 1, or `all` -> None. Raises InputError for anything else."""
    if str(text) == "all":
        return None
    if not str(text).isdigit() or int(text) < 1:
        raise InputError(f"num_samples is {text!r}: give a whole number of at least 1, or all")
    return int(text)
