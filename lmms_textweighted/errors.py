"""The errors a user can act on. Each message is one line that names the input, its value and what to do."""


class TextweightedError(ValueError):
    """Base of every error that this package raises on purpose."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, or its type's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


class PlanError(TextweightedError):
    """A pruning plan, or a plan and an input, that do not fit together."""


class CheckpointError(TextweightedError):
    """A checkpoint that is missing, unreachable or no LLaVA."""


class InputError(TextweightedError):
    """A question, picture, option or folder that cannot be used."""
