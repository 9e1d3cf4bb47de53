"""What one prefill kept, why, and at what cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from lmms_textweighted.engine.cost import DecoderShape, equivalent_tokens, kv_bytes, prefill_flops
from lmms_textweighted.engine.grids import NEWLINE
from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.rank import Ranks


@dataclass
class StageTrace:
    """One stage of one document. Positions are those of the original, unpadded prompt.

    kept: image tokens that stay. candidates: image tokens that were scored. scores: float32, one a candidate.
    text: tokens whose rows were read: text tokens as the plan's text_scope says, or what else the scorer reads.
    text_weights: float32, one a row (empty where none is read). sources: for each kept token that was merged, the
    tokens that went in, its own first. flops: of the attention rows that were computed, in the decoder
    (`cost.scoring_flops`) and in the vision tower (`tower.Spent`), and of the choice (`scoring.Choice`). seconds: that
    looking, scoring and choosing took on the host, of the whole batch. places: int64 [K, 4], of each kept token its
    picture, its crop (0: the view of the whole picture), and row and column among that crop's patches; crop, row and
    column are -1 at a newline token. None where that is not known of the model. A token made of others has the place it
    stands at.
    """

    layer: int
    kept: torch.Tensor
    candidates: torch.Tensor
    scores: torch.Tensor
    text: torch.Tensor
    text_weights: torch.Tensor
    sources: dict[int, list[int]] = field(default_factory=dict)
    flops: int = 0
    seconds: float = 0.0
    places: torch.Tensor | None = None

    def kept_by_crop(self) -> list[dict[str, Any]] | None:
        """For each picture of which tokens stay: {"picture", "crops", "newlines"}, its number, how many tokens of crop
        0, 1, … up to the last one that has any, and how many newlines; None without `places`."""
        if self.places is None:
            return None
        found: dict[int, dict[str, Any]] = {}
        for picture, crop in self.places[:, :2].tolist():
            entry = found.setdefault(picture, {"picture": picture, "crops": [], "newlines": 0})
            if crop == NEWLINE:
                entry["newlines"] += 1
                continue
            entry["crops"] += [0] * (crop + 1 - len(entry["crops"]))
            entry["crops"][crop] += 1
        return [found[picture] for picture in sorted(found)]


@dataclass
class DocumentTrace:
    """One document's prefill.

    lengths: tokens that each decoder layer saw. image_lengths: image tokens among them.
    full_length: tokens without pruning, with pictures of the model's own size. image_tokens: the pictures' among them.
    spared: those that smaller pictures never had. ranks: the last layer's, where asked for and `Plan.unranked` is "".
    """

    plan: Plan
    shape: DecoderShape
    element_size: int
    full_length: int
    image_tokens: int
    lengths: list[int]
    image_lengths: list[int]
    stages: list[StageTrace] = field(default_factory=list)
    ranks: Ranks | None = None
    spared: int = 0

    @property
    def input_length(self) -> int:
        """Tokens of the prompt as the model was given it."""
        return self.full_length - self.spared

    @property
    def kept_tokens(self) -> int:
        """Image tokens that the last layer sees."""
        return self.image_lengths[-1]

    @property
    def kept_ratio(self) -> float:
        """`kept_tokens` over the image tokens of the prompt; 1 for a prompt without images."""
        return self.kept_tokens / self.image_tokens if self.image_tokens else 1.0

    @property
    def equivalent_tokens(self) -> float:
        """Mean number of image tokens over all layers."""
        return equivalent_tokens(self.image_lengths)

    @property
    def flops(self) -> int:
        """Prefill FLOPs of the decoder layers; see `cost.layer_flops`."""
        return prefill_flops(self.shape, self.lengths)

    @property
    def selection_flops(self) -> int:
        """FLOPs of the selection itself, in no other figure here."""
        return sum(stage.flops for stage in self.stages)

    @property
    def selection_flops_ratio(self) -> float:
        """`selection_flops` over `flops`."""
        return self.selection_flops / self.flops

    @property
    def selection_seconds(self) -> float:
        """Seconds that the selection took on the host, for the whole batch that the document was in."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def flops_ratio(self) -> float:
        """`flops` over those of the same prompt unpruned."""
        return self.flops / prefill_flops(self.shape, [self.full_length] * self.shape.layers)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache after prefill, padding not counted."""
        return kv_bytes(self.shape, self.lengths, self.element_size)

    @property
    def kv_ratio(self) -> float:
        """`kv_bytes` over those of the same prompt unpruned."""
        return sum(self.lengths) / (self.full_length * self.shape.layers)

    def summary(self) -> dict:
        """The figures as plain data: what goes into a log line or a result file."""
        data = {
            "image_tokens": self.image_tokens,
            "kept_tokens": self.kept_tokens,
            "kept_ratio": self.kept_ratio,
            "equivalent_tokens": self.equivalent_tokens,
            "flops_ratio": self.flops_ratio,
            "selection_flops_ratio": self.selection_flops_ratio,
            "kv_bytes": self.kv_bytes,
            "kv_ratio": self.kv_ratio,
            "lengths": list(self.lengths),
            "kept_positions": [stage.kept.tolist() for stage in self.stages],
            "text_scope": self.plan.text_scope,
            "keep_scope": self.plan.keep_scope,
            "text_positions": [stage.text.tolist() for stage in self.stages],
        }
        if self.ranks is not None:
            data["numeric_rank"] = self.ranks.numeric_mean
            data["effective_rank"] = self.ranks.effective_mean
        if any(stage.places is not None and bool((stage.places[:, 1] != 0).any()) for stage in self.stages):
            data["kept_by_crop"] = [stage.kept_by_crop() for stage in self.stages]
        if self.plan.unranked:
            data["unranked"] = self.plan.unranked
        return data


@dataclass
class Trace:
    """All documents that were prefilled while pruning was on, in the order of the batches and of their rows."""

    documents: list[DocumentTrace] = field(default_factory=list)
