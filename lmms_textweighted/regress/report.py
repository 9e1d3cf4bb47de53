"""What `regress` prints: the verdict, and for every finding which documents changed, from what to what."""

from __future__ import annotations

from rich.console import Console

from lmms_textweighted.regress.baseline import Baseline
from lmms_textweighted.regress.diff import Finding, is_regression

SHOWN = 8  # changes a finding; the rest is counted
_LONG = 60  # characters: what is longer stands on a line of its own


def print_findings(console: Console, findings: list[Finding], *, strict: bool) -> None:
    """One block a finding: `FAIL`, `changed` or `note`, its summary, then its changes."""
    for finding in findings:
        fails = is_regression([finding], strict=strict)
        label, style = ("FAIL", "bold red") if fails else ("note" if finding.notice else "changed", "yellow")
        _line(console, f"{label:8}{finding.kind}: {finding.summary}", style)
        # Long texts, such as prompts, are shown once; the other documents are named.
        shown = 1 if any(len(change.old) > 4 * _LONG for change in finding.changes) else SHOWN
        for change in finding.changes[:shown]:
            if max(len(change.old), len(change.new)) <= _LONG:
                _line(console, f"          {change.subject}: {change.old} -> {change.new}")
            else:
                _line(console, f"          {change.subject}:")
                _line(console, f"            old: {change.old!r}")
                _line(console, f"            new: {change.new!r}")
        rest = [change.subject for change in finding.changes[shown:]]
        if rest:
            more = f", and {len(rest) - 40} more" if len(rest) > 40 else ""
            _line(console, f"          and {', '.join(rest[:40])}{more}")


def print_accuracies(console: Console, old: Baseline, new: Baseline) -> None:
    """One line a point: accuracy then and now."""
    for before, now in zip(old.points, new.points, strict=True):
        _line(console, f"{before.name:28}{before.accuracy:7.1%} -> {now.accuracy:.1%}")


def _line(console: Console, text: str, style: str | None = None) -> None:
    # As it is: no markup, no wrapping at 80 columns in a CI's log.
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
