"""The original `llava` package's models, haotian-liu's and LLaVA-NeXT's: features take the place of a tag of -200.

The tag is one input id; how many tokens each image becomes is known only where the package splices. So its own
`prepare_inputs_labels_for_multimodal` is watched: it is given the input ids as labels, and gives back -100 where image
features (or padding) stand.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from lmms_textweighted.engine.caches import CACHE_NAME, OLD_NAME
from lmms_textweighted.engine.grids import Grid
from lmms_textweighted.engine.layout import IMAGE, Prompts
from lmms_textweighted.engine.splice import Splice, Tower, removed_at_end, replaced
from lmms_textweighted.errors import PlanError
from lmms_textweighted.families.base import IMAGE_TAG_ID
from lmms_textweighted.families.numbering import WIDTH, grids_of, numbered, read
from lmms_textweighted.families.towers import has_class_token, looked_into

_IGNORED = -100  # llava.constants.IGNORE_INDEX
_SPLICER = "prepare_inputs_labels_for_multimodal"


def is_llava_package_model(model: Any) -> bool:
    """Whether the model splices its images as the `llava` package does."""
    return hasattr(model, _SPLICER)


def take_cache_by_its_name(model: Any) -> Callable[[], None]:
    """Let a model of the package, which knows a KV cache as `past_key_values`, be given it under transformers' name.

    Since transformers 5.24 that is `cache`, and without this the package's `generate` fails. Returns what undoes it.
    """
    if CACHE_NAME == OLD_NAME:
        return lambda: None

    def rename(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if CACHE_NAME in kwargs:
            kwargs[OLD_NAME] = kwargs.pop(CACHE_NAME)
        return args, kwargs

    prepare = model.prepare_inputs_for_generation

    @functools.wraps(prepare)
    def prepared(*args: Any, **kwargs: Any) -> Any:
        return prepare(*args, **rename(model, args, kwargs)[1])

    def undo() -> None:
        hook.remove()
        if own is None:
            del model.prepare_inputs_for_generation
        else:
            model.prepare_inputs_for_generation = own

    # No context managers here: one that nobody holds is closed, and undoes itself, when it is let go of.
    own = vars(model).get("prepare_inputs_for_generation")
    hook = model.register_forward_pre_hook(rename, with_kwargs=True)
    model.prepare_inputs_for_generation = prepared
    return undo


def _is_known(model: Any) -> bool:
    """Whether each image token is one patch, or a newline: so not where a grid's map is made smaller."""
    config, tower = model.config, model.get_vision_tower()
    merge = getattr(config, "mm_patch_merge_type", "flat")
    ratio = getattr(config, "image_aspect_ratio", None) or "square"
    known = merge in ("flat", "spatial", "spatial_unpad") and "anyres_max" not in ratio
    return known and tower.select_feature == "patch" and config.hidden_size >= WIDTH


class LlavaSplice(Splice):
    """Watches a `LlavaLlamaForCausalLM` or one of its kin."""

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        flat = getattr(config, "mm_patch_merge_type", "flat") == "flat"
        whole = "anyres" not in (getattr(config, "image_aspect_ratio", None) or "square")
        self.tokens_per_image = model.get_vision_tower().num_patches if flat and whole else None
        self._has_grids = self.tokens_per_image is None and _is_known(model)
        self._prompts: Prompts | None = None
        self._original: Any = None
        self._generating = False

    def attach(self, stack: ExitStack) -> None:
        stack.callback(take_cache_by_its_name(self.model))
        self._original = getattr(self.model, _SPLICER)
        self._signature = inspect.signature(self._original)
        stack.enter_context(replaced(self.model, _SPLICER, self._splice))
        # `generate` splices first and calls the model with embeddings; called by itself, the model splices inside.
        generate = self.model.generate

        @functools.wraps(generate)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._prompts, self._generating = None, True  # nothing may be left of a call that failed
            try:
                return generate(*args, **kwargs)
            finally:
                self._generating = False

        stack.enter_context(replaced(self.model, "generate", watched))
        stack.enter_context(removed_at_end(self.model.register_forward_pre_hook(self._before_model, with_kwargs=True)))

    def prompts(self, rows: int) -> Prompts | None:
        prompts, self._prompts = self._prompts, None
        if prompts is None:
            return None
        times, rest = divmod(rows, len(prompts.ids))
        if rest:
            raise PlanError(f"{len(prompts.ids)} prompts were spliced, but {rows} rows arrive at the decoder")
        return prompts.repeated(times)  # beam search repeats rows after the images are in

    def tower(self) -> Tower:
        tower = self.model.get_vision_tower()
        inner, chosen = tower.vision_tower, tower.select_layer
        if (
            tower.select_feature != "patch"
            or not has_class_token(inner)
            or not (self.tokens_per_image or self._has_grids)
        ):
            return Tower(type(inner).__name__, has_class_token(inner))
        return looked_into(inner, chosen, self.model.get_model().mm_projector)

    def check_step(self) -> None:
        if self._prompts is not None:
            raise PlanError("image tokens arrive on top of a KV cache: give the whole prompt in one prefill")

    def _before_model(self, module: Any, args: tuple, kwargs: dict) -> None:
        if kwargs.get("inputs_embeds") is None:
            self._prompts = None
        elif not self._generating:
            raise PlanError("the model was called with inputs_embeds: give input_ids and images, they are spliced here")

    def _splice(self, *args: Any, **kwargs: Any) -> Any:
        call = self._signature.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        input_ids, images = given["input_ids"], given["images"]
        if images is None or input_ids.shape[1] == 1:
            return self._original(*args, **kwargs)
        if given["labels"] is not None:
            raise PlanError("labels do not fit a shortened sequence: compute the loss from the logits")
        attention_mask = given["attention_mask"]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        given.update(attention_mask=mask, labels=input_ids)
        ids, positions, new_mask, cache, embeddings, labels = self._original(*call.args, **call.kwargs)
        valid = new_mask.bool().cpu()
        if attention_mask is None and not valid.all():
            raise PlanError("rows of different lengths need an attention_mask: without one, padding is attended to")
        self._prompts = self._read(input_ids.cpu(), mask.bool().cpu(), valid, labels.cpu(), given)
        return ids, positions, None if attention_mask is None else new_mask, cache, embeddings, None

    def _read(
        self, ids: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor, labels: torch.Tensor, given: dict[str, Any]
    ) -> Prompts:
        grids = self._numbered(labels, valid, given) if self._has_grids else None
        sizes, pictures, first = [], [], 0
        for row in range(len(ids)):
            prompt = ids[row][mask[row]]
            tags = int((prompt == IMAGE_TAG_ID).sum())
            spliced = labels[row][valid[row]]
            if int((spliced != _IGNORED).sum()) != len(prompt) - tags:
                raise PlanError(
                    f"the prompt is longer than the checkpoint's tokenizer_model_max_length of "
                    f"{self.model.config.tokenizer_model_max_length} and its end was cut off: shorten it, or raise it"
                )
            if grids is None:
                sizes.append(self._sizes(spliced == _IGNORED, tags, first, given))
            else:
                sizes.append(tuple(len(grid.numbers) for grid in grids[first : first + tags]))
            pictures.append(tuple(range(first, first + tags)))
            first += max(1, tags)  # the package takes a picture for a row without one, too
        image = (labels == _IGNORED) & valid
        ids = labels.masked_fill(image, IMAGE).masked_fill(~valid, 0)
        return Prompts(ids, valid, tuple(sizes), tuple(pictures), grids)

    def _numbered(self, labels: torch.Tensor, valid: torch.Tensor, given: dict[str, Any]) -> tuple[Grid, ...]:
        """The grids of the batch's pictures, by splicing once more, with numbers for features: no tower runs."""
        images, patches = given["images"], self.model.get_vision_tower().num_patches
        as_views = isinstance(images, list) or images.ndim == 5
        views = [len(image) if as_views and image.ndim == 4 else 1 for image in images]
        like = self.model.get_input_embeddings().weight

        def encode(pixels: torch.Tensor) -> torch.Tensor:
            return numbered(len(pixels), patches, like.shape[1], like)

        with replaced(self.model, "encode_images", encode), torch.no_grad():
            embeddings = self._original(**given)[4]
        image = (labels == _IGNORED) & valid
        return tuple(grids_of(read(embeddings[image.to(embeddings.device)]), views, patches))

    def _sizes(self, image: torch.Tensor, tags: int, first: int, given: dict[str, Any]) -> tuple[int, ...]:
        """Tokens of each of a row's images. image: bool, the row's spliced sequence."""
        if not tags:
            return ()
        starts = torch.nonzero(image & ~torch.nn.functional.pad(image[:-1], (1, 0))).flatten()
        ends = torch.nonzero(image & ~torch.nn.functional.pad(image[1:], (0, 1))).flatten()
        if len(starts) == tags:
            return tuple((ends - starts + 1).tolist())
        if self.tokens_per_image:
            return (self.tokens_per_image,) * tags
        return tuple(self._measure(first + number, given) for number in range(tags))

    def _measure(self, number: int, given: dict[str, Any]) -> int:
        """Tokens of one picture of the batch, spliced by itself: needed where pictures touch each other."""
        alone = dict(given)
        ids = given["input_ids"].new_tensor([[0, IMAGE_TAG_ID]])
        alone.update(input_ids=ids, attention_mask=torch.ones_like(ids), labels=None, position_ids=None)
        alone["images"] = given["images"][number : number + 1]
        if given.get("image_sizes") is not None:
            alone["image_sizes"] = given["image_sizes"][number : number + 1]
        return self._original(**alone)[4].shape[1] - 1
