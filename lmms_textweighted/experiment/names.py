"""What a sweep's files are called. Imports nothing, so that readers of results need no torch."""

_STEM = "fastv_textweighted_layer{layer}_experiment"
# For `Path.glob`: any pruning layer's.
RESULT_PATTERN = f"{_STEM.format(layer='*')}.json"
ANSWERS_PATTERN = f"{_STEM.format(layer='*')}.answers.jsonl"


def file_name(layer: int, ending: str) -> str:
    """The file of a sweep with this pruning layer: the published run's name."""
    return f"{_STEM.format(layer=layer)}.{ending}"
