"""SparseVLM's raters: the text tokens that vote, told by the embeddings before any layer has run.

    M = softmax over T of X_I X_T^T,    m_t = mean over I of M[k, t],    R = { t : m_t > mean(m) = 1/|T| }

`X_I` [I, W] are the embeddings of the prompt's image tokens and `X_T` [T, W] of its text tokens behind them; no
scaling, so that at a width of 4096 few tokens win. The paper has >=, the code >. The authors compute in half precision,
here it is float32. Where no m_t is above the mean (a single text token, or all alike), all vote: the authors' mean
would be 0/0.
"""

from __future__ import annotations

import torch

from lmms_textweighted.engine.scoring import Scorer, Seen


def raters(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Which text tokens vote: bool [T]. image: [I, W], text: [T, W], the embeddings that enter layer 0."""
    mean = (image.float() @ text.float().T).softmax(dim=-1).mean(dim=0)
    chosen = mean > mean.mean()
    return chosen | ~chosen.any()


def rater_weights(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """1/|R| at raters, 0 at other text tokens: float32 [T], summing to 1. Arguments as of `raters`."""
    chosen = raters(image, text).float()
    return chosen / chosen.sum()


def seen_embeddings(scorer: Scorer, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
    """(`Seen.image_embeddings`, `Seen.embeddings`). Raises TypeError where the scorer was given none."""
    if seen.embeddings is None or seen.image_embeddings is None:
        raise TypeError(f"scorer {scorer.name!r} was given no embeddings (needs_embeddings), but asks for them")
    return seen.image_embeddings, seen.embeddings


def weights_of_raters(scorer: Scorer, seen: Seen) -> torch.Tensor:
    """`rater_weights` of what a scorer is given, whose rows are the text tokens. Raises TypeError without embeddings.

    The prompt's whole picture chooses them, so that they are the same at every stage.
    """
    image, embeddings = seen_embeddings(scorer, seen)
    return rater_weights(image, embeddings[seen.rows])
