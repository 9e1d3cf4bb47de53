"""Whether a result's model and software are those that are here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmms_textweighted.verify.verdict import Verdict

_MUST_BE = ("weights", "conv_template", "conv_template_digest", "image_aspect_ratio")
_MAY_LACK = ("text_tower",)  # of most models
_MAY_DIFFER = ("loader", "dtype", "attn_implementation", "device", "device_name")


def compare_models(recorded: Mapping[str, Any], here: Mapping[str, Any], verdict: Verdict) -> None:
    """Two of `provenance.model.model_state`: what makes it another model or another prompt is a difference."""
    pairs = [(name, recorded[name], here[name]) for name in _MUST_BE]
    pairs += [(name, recorded.get(name), here.get(name)) for name in _MAY_LACK]
    for name, then, now in pairs:
        if then != now:
            verdict.differences.append(f"{name} is {now!r}, recorded is {then!r}")


def compare_software(recorded: Mapping[str, Any], here: Mapping[str, Any], verdict: Verdict) -> None:
    """Two of `provenance.record.provenance`: where an answer may differ honestly, it is said under what it was made."""
    made, now_made = recorded["software"], here["software"]
    others = [(name, recorded["model"][name], here["model"][name]) for name in _MAY_DIFFER]
    others += [(name, made[name], now_made[name]) for name in ("lock", "code", "git")]
    others += [(name, version, now_made["versions"].get(name)) for name, version in made["versions"].items()]
    verdict.unchecked += [f"under {name} {then!r}: here it is {now!r}" for name, then, now in others if then != now]
