"""Conversations in, texts with their traces out: what the lmms-eval model and the command line both ask."""

from lmms_textweighted.inference.decoding import DEFAULT_MAX_NEW_TOKENS, Decoding, Timing, cut
from lmms_textweighted.inference.geometry import geometry_of
from lmms_textweighted.inference.pruned import Answer, Encoded, PrunedLlava
from lmms_textweighted.inference.stated import StatedLengths

__all__ = [
    "DEFAULT_MAX_NEW_TOKENS",
    "Answer",
    "Decoding",
    "Encoded",
    "PrunedLlava",
    "StatedLengths",
    "Timing",
    "cut",
    "geometry_of",
]
