"""A sweep result's meta: all that the figures depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from lmms_textweighted.experiment.files import scores_of
from lmms_textweighted.experiment.grid import LeftOut
from lmms_textweighted.experiment.head import options_of
from lmms_textweighted.experiment.options import Experiment
from lmms_textweighted.experiment.outcomes import Answered
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.inference import PrunedLlava
from lmms_textweighted.provenance.record import provenance


def meta_of(
    experiment: Experiment,
    llava: PrunedLlava,
    state: Mapping[str, Any],
    documents: Documents,
    answered: list[Answered],
    left_out: Sequence[LeftOut],
    layers: int,
) -> dict[str, Any]:
    """state: `provenance.model.model_state` of llava."""
    digests = [document.row["digest"] for document in answered]
    asked = experiment.pruning_layers(layers)
    made = provenance(state)
    chances = [1 / document.choices for document in answered if document.choices]
    return {
        "checkpoint": experiment.model_path,
        **{name: made["model"][name] for name in ("model_type", "weights", "dtype", "device")},
        "decoder_layers": layers,
        **documents.describe(),
        "num_samples": len(digests),
        "documents_sha256": hashlib.sha256("".join(digests).encode()).hexdigest(),
        "metric": documents.metric,
        "scores": scores_of(documents.metric),
        "chance": fmean(chances) if len(chances) == len(digests) else None,
        "conv_mode": llava.template,
        "prompt_example": answered[0].prompt if answered else None,
        "image_aspect_ratio": llava.image_aspect_ratio,
        "pruning_layer": asked if experiment.layers is None or len(asked) > 1 else asked[0],
        "budget": experiment.budget,
        "timed_documents": experiment.timed,
        "text_scope": experiment.text_scope,
        "keep_scope": experiment.keep_scope,
        "layer_numbering": "from 0; image tokens leave after this layer",
        "seed": experiment.seeds[0] if len(experiment.seeds) == 1 else experiment.seeds,
        "left_out": [asdict(point) for point in left_out],
        "rank_note": (
            "a causal image-to-image block is triangular with a positive diagonal, so its exact rank is the number of "
            "kept tokens; the numeric rank counts what the tolerance of 1e-6 hides"
        ),
        "document_ids": [document.row["id"] for document in answered],
        "options": _options(experiment),
        "provenance": made,
        "versions": {name: version for name, version in made["software"]["versions"].items() if name != "python"},
        "python": made["software"]["versions"]["python"],
    }


def _options(experiment: Experiment) -> dict[str, Any]:
    """Of a question file and its folder the names, not the paths: a result may be published."""
    named = {"question_file": experiment.question_file, "image_folder": experiment.image_folder}
    return {**options_of(experiment), **{name: path and path.name for name, path in named.items()}}
