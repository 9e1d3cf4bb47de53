"""Writes docs/errors.md: every bad input of tests/bad_inputs.py with the line that it gives. `make errors` runs it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.bad_inputs import GROUPS, Bad, line_of

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"
HEAD = """\
# Errors

{count} bad inputs, each with the one line that it gives: what was given, its value, what to do. A command exits with 1
then, unless another code is named. `make errors` writes this page by trying them; `tests/test_bad_inputs.py` tries them
again and compares with it. Every one is typed in a folder with the picture `images/a.png`, a question file `Q.json` and
a file `taken`; `/here` stands for that folder. Lines of Python show the error's type, a `TextweightedError`, in front.
"""


def entry(bad: Bad, said: str) -> str:
    """An input, the files beside it, and its line."""
    typed = f"```python\n{bad.typed}\n```" if bad.is_python else f"```sh\n{bad.typed}\n```"
    files = [
        f"with `{name}`:\n\n```{Path(name).suffix[1:]}\n{str(content).rstrip()}\n```"
        for name, content in bad.files.items()
        if bad.shown
    ]
    code = [f"exit code {bad.code}:"] * (bad.code != 1)
    return "\n\n".join([typed, *files, *code, f"```text\n{said}\n```"]) + "\n"


def main() -> None:
    """Try all, write the page. Raises AssertionError for an input that does not give one line."""
    parts = [HEAD.format(count=sum(len(group.inputs) for group in GROUPS))]
    for group in GROUPS:
        parts.append(f"## {group.title}\n\n{group.text}\n")
        for bad in group.inputs:
            with tempfile.TemporaryDirectory() as folder:
                parts.append(entry(bad, line_of(bad, Path(folder))))
    PAGE.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
