"""How a strategy looks in every picture: a colour and a marker, for any number of strategies."""

from __future__ import annotations

from collections.abc import Sequence

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers say the same again. A method keeps its
# style from picture to picture.
_FIXED = {
    "text_weighted": ("#0072B2", "o"),
    "text_weighted_debiased": ("#56B4E9", "v"),
    "fastv": ("#D55E00", "s"),
    "fastv_k2": ("#E69F00", "D"),
    "random": ("#777777", "^"),
    "none": ("#000000", "*"),
}
# The others': as many of each as have no common divisor, so that a pair comes again only after all have been there.
_COLORS = ("#009E73", "#CC79A7", "#8C564B", "#332288", "#999933", "#882255", "#44AA99")
_MARKERS = ("P", "X", "<", ">", "p", "h", "d", "8")


def styles(strategies: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Each strategy's (colour, marker), no two alike among up to 56 without a fixed style."""
    others = [name for name in dict.fromkeys(strategies) if name not in _FIXED]
    given = {
        name: (_COLORS[place % len(_COLORS)], _MARKERS[place % len(_MARKERS)]) for place, name in enumerate(others)
    }
    return {name: _FIXED.get(name) or given[name] for name in strategies}
