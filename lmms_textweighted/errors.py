"""The errors a user can act on. Each message is one line that names the input, its value and what to do."""


class TextweightedError(ValueError):
    """Base of every error that this package raises on purpose."""


class PlanError(TextweightedError):
    """A pruning plan, or a plan and an input, that do not fit together."""


class CheckpointError(TextweightedError):
    """A checkpoint that is missing, unreachable or no LLaVA."""


class InputError(TextweightedError):
    """A question, picture, option or folder that cannot be used."""
