"""One thing that a package has and does not promise, and how to see whether it is still there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lmms_textweighted.errors import describe
from lmms_textweighted.upstream.known_bad import installed

# The newest and the oldest releases on which every check was run. lmms-eval: 0.7.3 alone.
TRANSFORMERS = "5.20.2 to 5.24.0"
LMMS_EVAL = "0.7.3"


@dataclass(frozen=True)
class Unpromised:
    """package: its name on the index. what: the dotted name, attribute, argument or behaviour. used_by: our module
    (without `lmms_textweighted.`), several with commas, or `lmms-eval` for what that needs of others. since: the
    releases that are known to have it.

    check: exercises it; raises or returns False when it is gone.
    """

    package: str
    what: str
    used_by: str
    since: str
    check: Callable[[], bool | None]

    @property
    def is_here(self) -> bool:
        """Whether the package is installed: nothing can be said of one that is not."""
        return installed(self.package) is not None

    def problem(self) -> str | None:
        """None, or one sentence: what is gone, how it showed, who uses it, and which releases have it."""
        try:
            if self.check() is not False:
                return None
            found = "it is not there, or does something else"
        except Exception as error:  # upstream code, changed in ways that nobody can foresee
            found = describe(error)
        return (
            f"{self.package} {installed(self.package)} no longer has `{self.what}` ({found}): used by {self.used_by}, "
            f"known to be there in {self.since}"
        )


class Names(list[Unpromised]):
    """A list that fills itself: each check is a function under `@names(what, used_by)`."""

    def __init__(self, package: str, since: str) -> None:
        super().__init__()
        self.package, self.since = package, since

    def __call__(
        self, what: str, used_by: str, since: str | None = None
    ) -> Callable[[Callable[[], bool | None]], Callable[[], bool | None]]:
        def add(check: Callable[[], bool | None]) -> Callable[[], bool | None]:
            self.append(Unpromised(self.package, what, used_by, since or self.since, check))
            return check

        return add
