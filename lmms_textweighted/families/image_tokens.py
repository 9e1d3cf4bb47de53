"""transformers' LLaVA, LLaVA-NeXT (1.6) and LLaVA-OneVision: one input id stands for every image token."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

import torch

from lmms_textweighted.engine.layout import IMAGE, Prompts
from lmms_textweighted.engine.splice import Splice, removed_at_end, replaced
from lmms_textweighted.errors import PlanError


class TransformersSplice(Splice):
    """Reads positions off the input ids, and each image's number of tokens off the features that the model makes.

    Newline features and an unpadded grid's patches are image tokens like the others. Raises PlanError when the model
    names no image token.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        self.image_token_id = getattr(config, "image_token_id", None)
        self.features: Any = getattr(model, "model", None)
        if self.image_token_id is None or not hasattr(self.features, "get_image_features"):
            raise PlanError(f"{type(model).__name__} names no image_token_id in its config: give a LLaVA")
        self.tokens_per_image = getattr(config, "image_seq_length", None) if config.model_type == "llava" else None
        self._input: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self._sizes: list[int] = []

    def attach(self, stack: ExitStack) -> None:
        hook = self.model.register_forward_pre_hook(self._before_model, with_kwargs=True)
        stack.enter_context(removed_at_end(hook))
        original = self.features.get_image_features

        @functools.wraps(original)  # `generate` reads its signature
        def get_image_features(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            self._sizes += _lengths(output)
            return output

        stack.enter_context(replaced(self.features, "get_image_features", get_image_features))

    def prompts(self, rows: int) -> Prompts | None:
        input_ids, attention_mask = self._given()
        ids = input_ids.cpu()
        valid = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
        image = (ids == self.image_token_id) & valid
        left = list(self._sizes)
        sizes = [_split(int(count), left) for count in image.sum(dim=1)]
        if left:
            raise PlanError(f"the model made features of {len(left)} more images than the prompts have tokens for")
        return Prompts(ids.masked_fill(image, IMAGE), valid, tuple(sizes))

    def check_step(self) -> None:
        ids, image = self._given()[0], torch.as_tensor(self.image_token_id)
        if ids.shape[1] > 1 and torch.isin(ids, image.to(ids.device)).any():
            raise PlanError("image tokens arrive on top of a KV cache: give the whole prompt in one prefill")

    def _given(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._input is None:
            raise PlanError(
                f"the decoder runs, but not by the {type(self.model).__name__} that prune was given: call that one "
                "inside the block, not a part of it or a wrapper around it"
            )
        return self._input

    def _before_model(self, module: Any, args: tuple, kwargs: dict) -> None:
        input_ids = args[0] if args else kwargs.get("input_ids")
        if input_ids is None:
            raise PlanError("the model was called without input_ids: image positions are read off them")
        if kwargs.get("pixel_values_videos") is not None or (kwargs.get("mm_encoder_outputs") or {}).get("video"):
            raise PlanError("the input has a video: pictures only are pruned, give its frames as pictures")
        self._input = (input_ids, kwargs.get("attention_mask"))
        # `generate` makes the features before the forward, and repeats them for beam search.
        made = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        self._sizes = [] if made is None else _lengths(made)


def _lengths(output: Any) -> list[int]:
    """Tokens of each image in what `get_image_features` gives."""
    return [len(feature) for feature in getattr(output, "pooler_output", output)]


def _split(tokens: int, sizes: list[int]) -> tuple[int, ...]:
    """The first sizes that add up to `tokens`; they are taken out of the list."""
    taken: list[int] = []
    while sum(taken) < tokens and sizes:
        taken.append(sizes.pop(0))
    if sum(taken) != tokens:
        raise PlanError(f"a prompt has {tokens} image tokens, but its images have {taken}: their sizes do not fit")
    return tuple(taken)
