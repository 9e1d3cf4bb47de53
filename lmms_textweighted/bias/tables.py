"""The report as tables of text: what is printed, written and shown on a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmms_textweighted.experiment.names import budget_text

NONE = "–"
CHANCE = "random choice"
UNPRUNED = "none"
_REFERENCE = "text_weighted"

# The tables of figures: short and whole title, and (name, heading) of each column.
_TABLES: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Places",
        "Where kept tokens lie",
        (
            ("edge", "edge"),
            ("middle", "middle"),
            ("column", "column"),
            ("row", "row"),
            ("padding", "padding"),
            ("base", "base view"),
        ),
    ),
    (
        "Weights",
        "What scores and words weigh",
        (
            ("strongest", "ten strongest"),
            ("first_word", "first token"),
            ("last_word", "last token"),
            ("word_centre", "centre"),
        ),
    ),
    (
        "Follows",
        "What the choice follows",
        (
            ("question", "other question"),
            ("same_place", "mirrored, place"),
            ("same_content", "mirrored, content"),
        ),
    ),
)


@dataclass
class Table:
    """title, columns: the first is the rows' name. short: a word for it. groups: (heading, rows) that stand together; a
    heading may be "". notes: what the table does not say itself."""

    title: str
    columns: list[str]
    short: str = ""
    groups: list[tuple[str, list[list[str]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[list[str]]:
        return [row for _, rows in self.groups for row in rows]


def tables_of(report: dict[str, Any]) -> list[Table]:
    """All tables, those with nothing in them left out."""
    tables = [_figures(report, *table) for table in _TABLES]
    tables += [_budgets(report), _methods(report), _early(report), _hard(report)]
    return [table for table in tables if table.groups or table.notes]


def _figures(report: dict[str, Any], short: str, title: str, columns: Sequence[tuple[str, str]]) -> Table:
    points, kinds = report["points"], report["figures"]
    table = Table(title, ["method"], short)
    reasons: dict[str, list[str]] = {}
    shown = []
    for name, heading in columns:
        told = {point["figures"][name].get("reason") for point in points}
        if None not in told and len(told - _of_points(points)) == 1:  # one reason that is not of the methods
            table.notes.append(f"{heading}: {NONE}, {next(iter(told - _of_points(points)))}")
            continue
        shown.append(name)
        table.columns.append(heading + (" %" if kinds[name]["percent"] else ""))
    said: list[tuple[str, list[list[str]]]] = []
    for budget, members in _by_budget(points):
        rows = []
        for point in members:
            entries = [point["figures"][name] for name in shown]
            cells = [_cell(entry, kinds[name]["percent"]) for name, entry in zip(shown, entries, strict=True)]
            if point["strategy"] != UNPRUNED:
                rows.append([name_of(point, points), *cells])
            for reason in dict.fromkeys(entry["reason"] for entry in entries if "reason" in entry):
                if point["strategy"] not in reasons.setdefault(reason, []):
                    reasons[reason].append(point["strategy"])
        chance = [_chance([p["figures"][name] for p in members], kinds[name]["percent"]) for name in shown]
        if rows:
            said.append((_budget_heading(budget, report), [[CHANCE, *chance], *rows]))
    table.groups = _joined(said)
    table.notes += [f"{NONE} {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    table.notes.append(f"*: {CHANCE}'s value is outside of the 95 % interval")
    if "same_place" in shown and any(point["strategy"] in ("random", "random_pre") for point in points):
        table.notes.append("random draws by the prompt's text, so a mirrored picture changes nothing in its choice")
    return table


def _joined(groups: Sequence[tuple[str, list[list[str]]]]) -> list[tuple[str, list[list[str]]]]:
    """Groups that say the same as one, under both headings."""
    joined: list[tuple[str, list[list[str]]]] = []
    for heading, rows in groups:
        if joined and joined[-1][1] == rows:
            joined[-1] = (f"{joined[-1][0]}, {heading.rpartition(' ')[2]}", rows)
        else:
            joined.append((heading, rows))
    return joined


def _of_points(points: Sequence[dict[str, Any]]) -> set[str]:
    """Reasons that only some methods have."""
    return {
        reason
        for name in ("edge", "strongest", "first_word")
        for point in points
        if (reason := point["figures"][name].get("reason")) is not None
    }


def _budgets(report: dict[str, Any]) -> Table:
    found = report["between_budgets"]
    steps = list(dict.fromkeys((one["first"]["budget"], one["second"]["budget"]) for one in found))
    title = "Kept tokens of the smaller budget that the larger one keeps, too"
    table = Table(title, ["method", *(f"{_budget(a, report)} → {_budget(b, report)} %" for a, b in steps)], "Budgets")
    rows: dict[str, list[str]] = {}
    reasons: dict[str, list[str]] = {}
    for one in found:
        name = name_of(one["first"], report["points"])
        row = rows.setdefault(name, [name, *([NONE] * len(steps))])
        row[1 + steps.index((one["first"]["budget"], one["second"]["budget"]))] = _cell(one["share"], True)
        _note_reason(reasons, one["share"], name, "no set of kept tokens")
    if rows:
        chance = [
            _chance([e["share"] for e in found if (e["first"]["budget"], e["second"]["budget"]) == step], True)
            for step in steps
        ]
        table.groups.append(("", [[CHANCE, *chance], *rows.values()]))
        table.notes += [f"{NONE} {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return table


def _methods(report: dict[str, Any]) -> Table:
    """Of every point: what it shares with text weighting, and with what it shares most."""
    points = report["points"]
    table = Table(
        "Kept tokens that another method keeps, too", ["method", f"{_REFERENCE} %", "most alike %", "which"], "Methods"
    )
    for budget, members in _by_budget(points):
        rows, chance = [], []
        for point in members:
            mine = _key(point)
            others = [
                (one["second"] if _key(one["first"]) == mine else one["first"], one["share"])
                for one in report["between_methods"]
                if mine in (_key(one["first"]), _key(one["second"])) and "mean" in one["share"]
            ]
            if not others:
                continue
            chance += [share for _, share in others]
            same = [share for other, share in others if other["strategy"] == _REFERENCE]
            best, share = max(others, key=lambda pair: pair[1]["mean"])
            first = _cell(same[0], True) if same else NONE
            rows.append([name_of(point, points), first, _cell(share, True), name_of(best, points)])
        if rows:
            table.groups.append((_budget_heading(budget, report), [[CHANCE, _chance(chance, True), NONE, ""], *rows]))
    left = [point["strategy"] for point in points if point["figures"]["edge"].get("reason")]
    if table.groups and left:
        table.notes.append(f"left out, with no set of kept tokens: {', '.join(dict.fromkeys(left))}")
    return table


def _early(report: dict[str, Any]) -> Table:
    early = report["early_words"]
    table = Table(
        "Text weighting's early words, plain and with the causal correction",
        ["method", "first token %", "mask alone %", "last token %", "centre", "shared %", "accuracy %"],
        "Early words",
    )
    for budget, members in _by_budget(early["rows"]):
        rows = []
        for row in members:
            accuracy = NONE if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"
            rows.append(
                [
                    name_of(row, report["points"]),
                    _cell(row["first_word"], True),
                    _plain(row["even"]["first_word"]),
                    _cell(row["last_word"], True),
                    _cell(row["word_centre"], False),
                    _cell(row.get("shared_with_the_other", {"reason": ""}), True),
                    accuracy,
                ]
            )
        uniform = [
            _chance([row[name] for row in members], name != "word_centre") for name in ("first_word", "last_word")
        ]
        table.groups.append(
            (
                _budget_heading(budget, report),
                [["uniform weights", uniform[0], NONE, uniform[1], "0.50", NONE, NONE], *rows],
            )
        )
    if early.get("reason"):
        table.notes.append(f"{NONE}: {early['reason']}")
    if table.groups:
        table.notes.append(
            "mask alone: the first token's weight if every text row attended evenly to all that it sees; shared: kept "
            "tokens that the other of the two keeps, too"
        )
        if early["first_tokens"] and early["text_tokens"]:
            first, times = next(iter(early["first_tokens"].items()))
            table.notes.append(
                f"{early['text_tokens']:.1f} text tokens vote on average; the first is {first!r} in {times} of "
                f"{report['meta']['num_samples']} documents; the centre is 0 at the first token and 1 at the last"
            )
        for row in early["rows"]:
            test = row.get("against_plain")
            if test:
                where = f"{name_of(row, report['points'])} at {_budget(row['budget'], report)}"
                told = f"p = {test['p']:.3g} ({test['test']}, {test['documents']} documents)"
                table.notes.append(f"{where}: {100 * test['difference']:+.1f} points against {_REFERENCE}, {told}")
    return table


def _hard(report: dict[str, Any]) -> Table:
    table = Table(
        "Accuracy where a smaller picture fails, and where it is enough",
        ["method", "fails %", "is enough %"],
        "Hard subset",
    )
    if any("rows" in part for part in report["hard"]):
        table.notes.append(
            "fails: documents that the method downsample gets wrong at the same budget; in brackets 95 % intervals; n: "
            "documents of either kind"
        )
    for part in report["hard"]:
        budget = _budget(part["budget"], report)
        if "reason" in part:
            table.notes.append(f"{NONE} at {budget}: {part['reason']}")
            continue
        rows = [
            [name_of(row, report["points"]), _accuracy(row["fails"]), _accuracy(row["enough"])] for row in part["rows"]
        ]
        heading = f"{budget}: n = {part['fails']} and {part['enough']}"
        table.groups.append((heading, rows))
    return table


def _accuracy(entry: dict[str, Any]) -> str:
    if "reason" in entry:
        return f"{NONE} ({entry['reason']})"
    low, high = entry["low"], entry["high"]
    return f"{100 * entry['mean']:.1f}" + ("" if low is None else f" ({100 * low:.1f} to {100 * high:.1f})")


def _cell(entry: dict[str, Any], percent: bool) -> str:
    """`16.0±1.2`, half of the interval's width, with a star where chance is outside of the interval."""
    if "mean" not in entry:
        return NONE
    form, scale = ("{:.1f}", 100) if percent else ("{:.2f}", 1)
    text = form.format(scale * entry["mean"])
    low, high, random = entry.get("low"), entry.get("high"), entry.get("random")
    if low is None or high is None:
        return text
    outside = random is not None and not low - 1e-12 <= random <= high + 1e-12
    return f"{text}±{form.format(scale * (high - low) / 2)}{'*' if outside else ' '}"


def _plain(entry: dict[str, Any]) -> str:
    return f"{100 * entry['mean']:.1f}" if "mean" in entry else NONE


def _chance(entries: Sequence[dict[str, Any]], percent: bool) -> str:
    """The value of a random choice: one number where all points have the same, else its range."""
    known = [entry["random"] for entry in entries if entry.get("random") is not None]
    if not known:
        return NONE
    form, scale = ("{:.1f}", 100) if percent else ("{:.2f}", 1)
    least, most = form.format(scale * min(known)), form.format(scale * max(known))
    return least if least == most else f"{least} to {most}"


def _note_reason(reasons: dict[str, list[str]], entry: dict[str, Any], name: str, said: str) -> None:
    if "mean" not in entry and name not in reasons.setdefault(said, []):
        reasons[said].append(name)


def _by_budget(points: Sequence[dict[str, Any]]) -> list[tuple[Any, list[dict[str, Any]]]]:
    budgets = list(dict.fromkeys(point["budget"] for point in points))
    order: Callable[[Any], float] = lambda budget: float("inf") if budget is None else -budget  # noqa: E731
    return [(budget, [p for p in points if p["budget"] == budget]) for budget in sorted(budgets, key=order)]


def _budget(budget: Any, report: dict[str, Any]) -> str:
    return "as its name says" if budget is None else budget_text(budget, report["meta"])


def _budget_heading(budget: Any, report: dict[str, Any]) -> str:
    return _budget(budget, report) if budget is None else f"{report['meta']['budget']} {_budget(budget, report)}"


def _key(point: dict[str, Any]) -> tuple[Any, ...]:
    return point["strategy"], point["layer"], point["budget"]


def name_of(point: dict[str, Any], points: Sequence[dict[str, Any]]) -> str:
    """The strategy; with its layer where there are several."""
    several = len({one["layer"] for one in points if one["layer"] is not None}) > 1
    return f"{point['strategy']} {point['layer']}" if several and point["layer"] is not None else point["strategy"]
