"""What a comparison knows of a run, wherever it was read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from lmms_textweighted.engine.layers import EMBEDDINGS
from lmms_textweighted.paths import EMBEDDED

# Settings that must be equal for two runs to be compared.
SAME_SETTINGS = ("conv_template", "image_aspect_ratio", "system_prompt")


@dataclass(frozen=True)
class Document:
    """One answered document.

    target, prompt: hashes; prompt None: not logged. score None: the task gave it none. pictured: a sweep's hash of
    prompt, target and pictures.
    """

    target: str
    prompt: str | None
    score: float | None
    cluster: str | None = None
    pictured: str | None = None


@dataclass(frozen=True)
class Figures:
    """What pruning left, as means over the documents with an image; None where it was not recorded.

    kept: image tokens after the last stage. equivalent: mean image tokens over all layers. flops_ratio: prefill FLOPs
    against unpruned. kv_bytes: of the KV cache after prefill. prefill_seconds: to the first token of the document's
    batch, vision tower and selection in it; selection_seconds: the selection's part, on the host.
    selection_flops_ratio: FLOPs of the selection, which flops_ratio leaves out, against the pruned prefill.
    """

    kept: float | None = None
    equivalent: float | None = None
    flops_ratio: float | None = None
    kv_bytes: float | None = None
    prefill_seconds: float | None = None
    selection_seconds: float | None = None
    selection_flops_ratio: float | None = None
    documents: int = 0

    @classmethod
    def mean(cls, records: Sequence[dict[str, Any]]) -> Figures:
        """Of token-count records, those of documents without an image left out."""
        seen = [record for record in records if record.get("image_tokens")]
        return cls(
            kept=_mean(seen, "kept_tokens"),
            equivalent=_mean(seen, "equivalent_tokens"),
            flops_ratio=_mean(seen, "flops_ratio"),
            kv_bytes=_mean(seen, "kv_bytes"),
            prefill_seconds=_mean(seen, "prefill_seconds"),
            selection_seconds=_mean(seen, "selection_seconds"),
            selection_flops_ratio=_mean(seen, "selection_flops_ratio"),
            documents=len(seen),
        )

    def joined(self, other: Figures) -> Figures:
        """Of both runs' documents together."""
        total = self.documents + other.documents

        def mean(one: float | None, two: float | None) -> float | None:
            if one is None or two is None or not total:
                return one if two is None else two
            return (one * self.documents + two * other.documents) / total

        return Figures(
            kept=mean(self.kept, other.kept),
            equivalent=mean(self.equivalent, other.equivalent),
            flops_ratio=mean(self.flops_ratio, other.flops_ratio),
            kv_bytes=mean(self.kv_bytes, other.kv_bytes),
            prefill_seconds=mean(self.prefill_seconds, other.prefill_seconds),
            selection_seconds=mean(self.selection_seconds, other.selection_seconds),
            selection_flops_ratio=mean(self.selection_flops_ratio, other.selection_flops_ratio),
            documents=total,
        )


@dataclass
class TaskResult:
    """A run's result in one task.

    value: the metric's aggregate, as the run's own file has it. documents: by number. scale: value = scale x mean
    score; None where the aggregate is no mean of the documents' scores, and then nothing is said of its spread.
    facts: what must be equal in two runs (version, generation settings, …). total: documents of the whole task, None
    where that is not known.
    """

    metric: str
    value: float
    higher_is_better: bool
    documents: dict[int, Document]
    scale: float | None
    facts: dict[str, Any] = field(default_factory=dict)
    total: int | None = None
    first_prompt: str | None = None  # of the document with the lowest number, as a text
    notes: list[str] = field(default_factory=list)

    @property
    def limited(self) -> bool:
        """Not all of the task's documents were answered."""
        return self.total is not None and len(self.documents) < self.total

    def scores(self) -> dict[int, float]:
        """The documents' scores in the units of `value`; empty where they do not make it up."""
        if self.scale is None:
            return {}
        return {n: self.scale * d.score for n, d in sorted(self.documents.items()) if d.score is not None}


@dataclass
class Run:
    """One row to be: a method at a budget.

    path: as the user named it or as it was found. model: lmms-eval's name of the model, or `sweep`. strategy: ours, or
    the model's name where it is not ours. settings: as they acted; what is not known is left out. prompt_example: the
    whole prompt of document 0, of a sweep. model_type: the kind of model, where it is recorded.
    """

    path: Path
    model: str
    strategy: str
    unpruned: bool
    checkpoint: str | None
    settings: dict[str, Any]
    figures: Figures
    tasks: dict[str, TaskResult]
    prompt_example: str | None = None
    model_type: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def checkpoint_name(self) -> str | None:
        """The last part of the checkpoint's name or path, in lower case; an embedded one's name for its folder, too."""
        if self.checkpoint is None:
            return None
        path = Path(self.checkpoint)
        folders: dict[tuple[str, ...], str] = {("tiny", folder): name for name, folder in EMBEDDED.items()}
        return folders.get(path.parts[-2:], path.name.lower())


def leave_after(stages: Sequence[Mapping[str, Any]]) -> str | None:
    """The layers after which tokens leave, as `7+15+23` (`before+2`: some leave before layer 0); None: none leaves."""
    layers = [stage["leave_after"] for stage in stages]
    return "+".join("before" if layer == EMBEDDINGS else str(layer) for layer in layers) or None


def digest(text: str) -> str:
    """SHA-256 of a text, as documents are told apart by."""
    return hashlib.sha256(text.encode()).hexdigest()


def scale_of(value: float, scores: Sequence[float]) -> float | None:
    """1 or 100 where value is that times the mean score; None where it is neither.

    Some aggregates are rounded to five places.
    """
    if not scores:
        return None
    mean = fmean(scores)
    for scale in (1.0, 100.0):
        if abs(value - scale * mean) <= 1e-5 * scale:
            return scale
    return None


def _mean(records: Sequence[dict[str, Any]], name: str) -> float | None:
    known = [float(record[name]) for record in records if record.get(name) is not None]
    return fmean(known) if known else None
