"""Where something stands in a YAML file, for errors that name the line."""

from __future__ import annotations

from collections.abc import Iterator

import yaml


def repeated_keys(node: yaml.Node) -> Iterator[yaml.Node]:
    """The keys that a mapping has twice, anywhere below."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key
            seen.add(str(key.value))
            yield from repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from repeated_keys(item)


def line_of(node: yaml.Node, loc: tuple[int | str, ...]) -> str:
    """`, line 7` of what `loc` leads to, as far as it does."""
    for part in loc:
        inside = None
        if isinstance(node, yaml.MappingNode):
            inside = next((value for key, value in node.value if key.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            inside = node.value[part]
        if inside is None:
            break
        node = inside
    return f", line {node.start_mark.line + 1}"
