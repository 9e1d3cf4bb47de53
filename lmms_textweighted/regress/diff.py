"""Two baselines of the same documents and weights -> what changed, and whether it is a regression. Pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from lmms_textweighted.errors import InputError
from lmms_textweighted.regress.baseline import Baseline, DocumentRecord, Outcome, Setup, Tolerances
from lmms_textweighted.regress.compact import to_ranges
from lmms_textweighted.statistics import are_hits, mcnemar_exact


@dataclass(frozen=True)
class Change:
    """From what to what. subject: a document or a setting."""

    subject: str
    old: str
    new: str


@dataclass(frozen=True)
class Finding:
    """One kind of change at one point, or of all. fails: it is beyond what is allowed. notice: it never fails."""

    kind: str
    summary: str
    fails: bool = False
    notice: bool = False
    changes: list[Change] = field(default_factory=list)


def is_regression(findings: Sequence[Finding], *, strict: bool = False) -> bool:
    """Whether one of them fails. strict: whether there is any but notices."""
    return any(finding.fails or (strict and not finding.notice) for finding in findings)


def check_contents(old: Baseline, contents: Sequence[tuple[str, str]], versions: dict[str, str]) -> None:
    """Raise InputError when the documents now, (id, content hash) each, are not the baseline's."""
    expected = [(document.id, document.content) for document in old.documents]
    if len(contents) != len(expected):
        raise InputError(f"the baseline has {len(expected)} documents, the task gives {len(contents)}: other data?")
    changed = [before[0] for before, now in zip(expected, contents, strict=True) if before != now]
    if not changed:
        return
    package = "pillow"
    before, now = old.setup.versions.get(package), versions.get(package)
    cause = f" (pictures are read by {package} {now}, the baseline's by {before})" if before != now else ""
    raise InputError(
        f"{len(changed)} of {len(expected)} documents are not the baseline's, the first is {changed[0]!r}: their "
        f"fields, targets or pictures changed{cause}; --update makes a baseline of the new ones"
    )


def check_weights(old: Baseline, weights: str) -> None:
    """Raise InputError when these weights are not the baseline's."""
    if weights != old.setup.weights:
        raise InputError(
            f"the weights of {old.settings.model_path!r} have the fingerprint {weights}, the baseline's have "
            f"{old.setup.weights}: give those, or --update for a baseline of the new ones"
        )


def compare(old: Baseline, new: Baseline) -> list[Finding]:
    """All changes from `old` to `new`, judged by the old baseline's tolerances. Nothing changed: an empty list.

    Raises InputError when documents or weights differ, or the points are other ones.
    """
    check_contents(old, [(document.id, document.content) for document in new.documents], new.setup.versions)
    check_weights(old, new.setup.weights)
    names = [[point.name for point in each.points] for each in (old, new)]
    if names[0] != names[1]:
        raise InputError(f"the baseline has the points {', '.join(names[0])}, now there are {', '.join(names[1])}")
    found = [*_setup(old.setup, new.setup), *_documents(old, new)]
    targets = {document.id: document.target for document in old.documents}
    for point, now in zip(old.points, new.points, strict=True):
        plan = _settings(point.plan, now.plan)
        if plan:
            found.append(Finding(f"plan of {point.name}", "other settings", fails=True, changes=plan))
        rows = list(zip(old.at(point.name), new.at(point.name), strict=True))
        found += [*_lengths(point.name, rows), *_kept(point.name, rows, old.tolerances)]
        found += _answers(point.name, rows, old.tolerances, targets)
    return found


def paired_p_value(old: Sequence[float], new: Sequence[float]) -> float:
    """Two-sided p-value of the same documents' scores: McNemar's exact test for 0/1 scores, otherwise the permutation
    test of the mean difference (signs flipped by document; all flips where there are few, else 9,999 seeded ones)."""
    before, after = np.asarray(old, dtype=float), np.asarray(new, dtype=float)
    if (before == after).all():
        return 1.0
    if are_hits(old, new):
        return mcnemar_exact(old, new)
    from scipy.stats import permutation_test

    done = permutation_test(
        (before, after),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    return float(done.pvalue)


def overlap(old: set[int], new: set[int]) -> float:
    """Jaccard overlap: size of the intersection over that of the union, 1 for two empty sets."""
    return len(old & new) / len(old | new) if old | new else 1.0


_Rows = list[tuple[Outcome, Outcome]]
_RANGES = 4  # of changed positions, shown in a finding


def _setup(old: Setup, new: Setup) -> list[Finding]:
    found = []
    versions = _settings(old.versions, new.versions)
    if versions:
        found.append(Finding("versions", "other packages than the baseline's", notice=True, changes=versions))
    for name, what in (
        ("conv_mode", "prompt template"),
        ("metric", "metric"),
        ("decoding", "decoding"),
        ("preparation", "image preparation"),
    ):
        before, now = getattr(old, name), getattr(new, name)
        changes = _settings(before, now) if isinstance(before, dict) else _settings({name: before}, {name: now})
        if changes:
            found.append(Finding(what, "other settings", fails=True, changes=changes))
    return found


def _settings(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    names = [*old, *(name for name in new if name not in old)]
    return [Change(name, str(old.get(name)), str(new.get(name))) for name in names if old.get(name) != new.get(name)]


def _documents(old: Baseline, new: Baseline) -> list[Finding]:
    rows = list(zip(old.documents, new.documents, strict=True))
    total, found = len(rows), []
    prompts = [Change(a.id, a.prompt, b.prompt) for a, b in rows if a.prompt != b.prompt]
    if prompts:
        found.append(Finding("prompt", f"{len(prompts)} of {total} rendered prompts", fails=True, changes=prompts))
    pixels = [Change(a.id, _pixels(a), _pixels(b)) for a, b in rows if not _pixels_alike(a, b, old.tolerances.pixels)]
    if pixels:
        summary = f"{len(pixels)} of {total} documents' pictures are prepared differently (mean, deviation)"
        found.append(Finding("pixels", summary, fails=True, changes=pixels))
    return found


def _pixels_alike(a: DocumentRecord, b: DocumentRecord, tolerance: float) -> bool:
    if a.pixels is None or b.pixels is None:
        return a.pixels == b.pixels
    return all(abs(x - y) <= tolerance for x, y in zip(a.pixels, b.pixels, strict=True))


def _pixels(document: DocumentRecord) -> str:
    return "no picture" if document.pixels is None else "{:.4f}, {:.4f}".format(*document.pixels)


def _lengths(point: str, rows: _Rows) -> list[Finding]:
    changes = [Change(a.document, a.lengths, b.lengths) for a, b in rows if a.lengths != b.lengths]
    summary = f"{len(changes)} of {len(rows)} documents have other sequence lengths in the layers"
    return [Finding(f"removal of {point}", summary, fails=True, changes=changes)] if changes else []


def _kept(point: str, rows: _Rows, tolerances: Tolerances) -> list[Finding]:
    """Kept tokens, stage by stage: the mean overlap over the documents, and each document's."""
    none: set[int] = set()
    pairs = [list(itertools.zip_longest(a.kept_sets(), b.kept_sets(), fillvalue=none)) for a, b in rows]
    overlaps = [[overlap(old, new) for old, new in stages] for stages in pairs]
    changed = sorted((min(each), place) for place, each in enumerate(overlaps) if each and min(each) < 1)
    if not changed:
        return []
    stages = max(map(len, overlaps))
    means = [fmean(each[stage] if stage < len(each) else 0.0 for each in overlaps) for stage in range(stages)]
    far = sum(least < tolerances.kept_min for least, _ in changed)
    summary = (
        f"{len(changed)} of {len(rows)} documents keep other tokens; overlap {', '.join(f'{m:.3f}' for m in means)} "
        f"(at least {tolerances.kept_mean:g} is allowed), {far} documents below {tolerances.kept_min:g}"
    )
    changes = [_kept_change(rows[place][0].document, least, pairs[place]) for least, place in changed]
    fails = min(means) < tolerances.kept_mean or far > 0
    return [Finding(f"kept tokens of {point}", summary, fails=fails, changes=changes)]


def _kept_change(document: str, least: float, stages: list[tuple[set[int], set[int]]]) -> Change:
    gone = " | ".join(_some(old - new) for old, new in stages)
    come = " | ".join(_some(new - old) for old, new in stages)
    return Change(f"{document} (overlap {least:.2f})", f"{gone} left", f"{come} came")


def _some(positions: set[int]) -> str:
    """How many, and the first ranges of them."""
    ranges = to_ranges(sorted(positions)).split(",")
    more = ",…" if len(ranges) > _RANGES else ""
    return f"{len(positions)} ({','.join(ranges[:_RANGES])}{more})" if positions else "0"


def _answers(point: str, rows: _Rows, tolerances: Tolerances, targets: dict[str, str]) -> list[Finding]:
    """Accuracy and single answers. It fails when more is lost than the tolerance and the paired test agrees."""
    changed = [(a, b) for a, b in rows if (a.answer, a.score) != (b.answer, b.score)]
    if not changed:
        return []
    changed.sort(key=lambda pair: pair[1].score - pair[0].score)  # what was lost first
    before, now = ([outcome.score for outcome in side] for side in zip(*rows, strict=True))
    fall = fmean(before) - fmean(now)
    p_value = paired_p_value(before, now)
    lost, gained = sum(b.score < a.score for a, b in rows), sum(b.score > a.score for a, b in rows)
    # The small addition: a fall of exactly the tolerance is allowed, whatever rounding made of it.
    fails = fall > tolerances.accuracy_fall + 1e-9 and p_value <= tolerances.alpha
    summary = (
        f"accuracy {fmean(before):.1%} -> {fmean(now):.1%} ({lost} lost, {gained} gained of {len(rows)}, paired test "
        f"p = {p_value:.2g}); {len(changed)} answers changed"
    )
    changes = [
        Change(f"{a.document} (right: {targets[a.document]})", *(f"{o.answer!r} scores {o.score:g}" for o in (a, b)))
        for a, b in changed
    ]
    kind = f"accuracy of {point}" if lost or gained else f"answers of {point}"
    return [Finding(kind, summary, fails=fails, changes=changes)]
