"""Models of transformers: one input id stands for every image token, and what one picture's tokens are."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

import torch

from lmms_textweighted.engine.grids import Grid
from lmms_textweighted.engine.layout import IMAGE, Prompts
from lmms_textweighted.engine.splice import Splice, Tower, removed_at_end, replaced
from lmms_textweighted.errors import PlanError
from lmms_textweighted.families.numbering import packed
from lmms_textweighted.families.towers import tower_of


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
        self._grids: list[Grid] | None = None
        self._input: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self._sizes: list[int] = []
        self.made: Any = None  # features that `generate` made before the forward, one a picture

    def attach(self, stack: ExitStack) -> None:
        hook = self.model.register_forward_pre_hook(self._before_model, with_kwargs=True)
        stack.enter_context(removed_at_end(hook))
        original = self.features.get_image_features

        @functools.wraps(original)  # `generate` reads its signature
        def get_image_features(*args: Any, **kwargs: Any) -> Any:
            self._grids = None
            output = original(*args, **kwargs)
            self._sizes += _lengths(output)
            return output

        stack.enter_context(replaced(self.features, "get_image_features", get_image_features))
        if self.model.config.model_type == "llava_next":
            pack = self.features.pack_image_features

            @functools.wraps(pack)
            def pack_image_features(image_features: Any, *args: Any, **kwargs: Any) -> Any:
                self._grids = packed(pack, image_features, *args, **kwargs)
                return pack(image_features, *args, **kwargs)

            stack.enter_context(replaced(self.features, "pack_image_features", pack_image_features))

    def prompts(self, rows: int) -> Prompts | None:
        input_ids, attention_mask = self._given()
        ids = input_ids.cpu()
        valid = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
        image = (ids == self.image_token_id) & valid
        sizes = self._divided(ids, image) if self.stated is None else self._stated_sizes(image)
        grids = None if self._grids is None else tuple(self._grids)
        return Prompts(ids.masked_fill(image, IMAGE), valid, tuple(sizes), grids=grids)

    def _divided(self, ids: torch.Tensor, image: torch.Tensor) -> list[tuple[int, ...]]:
        """The tokens of each row's pictures. ids, image: [B, S] and where among them image tokens stand."""
        left = list(self._sizes)
        sizes = [_split(int(count), left) for count in image.sum(dim=1)]
        if left:
            raise PlanError(f"the model made features of {len(left)} more images than the prompts have tokens for")
        return sizes

    def _stated_sizes(self, image: torch.Tensor) -> list[tuple[int, ...]]:
        stated = self.stated or []
        beams, rest = divmod(len(image), len(stated)) if stated else (0, 1)
        if rest or not beams:
            raise PlanError(f"image_sizes has {len(stated)} rows for a batch of {len(image)}: give one a row")
        sizes = [tuple(row) for row in stated for _ in range(beams)]
        for row, count in zip(sizes, image.sum(dim=1).tolist(), strict=True):
            if sum(row) != count:
                raise PlanError(f"image_sizes says {list(row)} for a prompt with {count} image tokens: they do not fit")
        return sizes

    def tower(self) -> Tower:
        return tower_of(self.model)

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
        self._grids = None if made is None else self._grids
        self.made = None if made is None else getattr(made, "pooler_output", made)


class RunSplice(TransformersSplice):
    """A picture is one unbroken run of image tokens: each is fenced by tokens of its own, whatever its tiles are."""

    def _divided(self, ids: torch.Tensor, image: torch.Tensor) -> list[tuple[int, ...]]:
        return [tuple(length for _, length in runs(row)) for row in image]


class TiledSplice(TransformersSplice):
    """A picture is several runs of image tokens, each behind a tag that says which tile it is; the last is the whole.

    The last run of a prompt is its last picture's whole view, so the token in front of it is that tag: every run behind
    the same one ends a picture.
    """

    def _divided(self, ids: torch.Tensor, image: torch.Tensor) -> list[tuple[int, ...]]:
        rows = []
        for row, places in zip(ids.tolist(), image, strict=True):
            sizes, open_tokens = [], 0
            found = runs(places)
            for start, length in found:
                open_tokens += length
                if start and row[start - 1] == row[found[-1][0] - 1]:
                    sizes.append(open_tokens)
                    open_tokens = 0
            if open_tokens:
                raise PlanError("a prompt begins with an image token: each tile needs a tag in front of it")
            rows.append(tuple(sizes))
        return rows


def runs(places: torch.Tensor) -> list[tuple[int, int]]:
    """(start, length) of each run of True in a bool [S]."""
    steps = torch.diff(places.int(), prepend=places.new_zeros(1).int(), append=places.new_zeros(1).int())
    starts, ends = (steps == 1).nonzero().flatten().tolist(), (steps == -1).nonzero().flatten().tolist()
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


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
