"""Models of transformers whose processor says what it writes for each picture: one class for most families."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import transformers
from packaging.version import Version
from transformers import BatchFeature

from lmms_textweighted.errors import CheckpointError, InputError
from lmms_textweighted.families.base import IMAGE_TAG_ID, Pieces
from lmms_textweighted.families.loading import Loaded, LoadOptions
from lmms_textweighted.families.pieces import check_offsets
from lmms_textweighted.families.transformers_family import TransformersFamily, load_transformers, special_tokens
from lmms_textweighted.families.written import Written, expanded, spans_before

_OFFSETS = "text_replacement_offsets"
_SINCE = "5.23"  # processors say what they write, and M-RoPE's axes are folded before the layers


class ProcessorFamily(TransformersFamily):
    """A model with a chat template of its own, and a processor that is called with text and pictures.

    models: model_type -> the name of transformers' class. limits: the picture limits (arguments of `LoadOptions`) that
    its processor knows, with the values of lmms-eval's own model. system_prompt: what lmms-eval's own model puts in
    front of a conversation.
    """

    models: ClassVar[dict[str, str]]
    limits: ClassVar[dict[str, int]] = {}
    system_prompt: ClassVar[str | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.kinds = tuple(cls.models)

    @classmethod
    def knows(cls, model: Any) -> bool:
        return getattr(getattr(model, "config", None), "model_type", None) in cls.models

    @property
    def placeholder(self) -> str:  # type: ignore[override]
        return self.processor.image_token

    @property
    def default_system_prompt(self) -> str | None:
        return self.system_prompt

    def check_template(self, name: str) -> None:
        if name != "hf":
            kind = self.model.config.model_type
            raise InputError(
                f"conv_template is {name!r}, but {kind} takes its own chat template only: give hf, or leave it out"
            )

    # Loading.

    @classmethod
    def load(cls, pretrained: str, folder: str, config: dict[str, Any], options: LoadOptions) -> Loaded:
        """Load a checkpoint by transformers. Raises CheckpointError when it cannot be, or has no chat template."""
        if Version(transformers.__version__) < Version(_SINCE):
            raise CheckpointError(
                f"checkpoint {pretrained!r} is a {config['model_type']}, which needs transformers {_SINCE} or later: "
                f"{transformers.__version__} is installed"
            )
        if options.image_aspect_ratio:
            raise InputError(
                f"image_aspect_ratio is {options.image_aspect_ratio!r}, but a {config['model_type']} takes its own "
                f"preparation only: leave it out"
            )
        given = options.picture_limits()
        for name in given:
            if name not in cls.limits:
                takes = " and ".join(cls.limits) or "none"
                raise InputError(f"{name} is given, but {config['model_type']} has no such limit: it takes {takes}")
        model_class = getattr(transformers, cls.models[config["model_type"]])
        model, processor = load_transformers(model_class, pretrained, folder, options)
        if not getattr(processor, "chat_template", None):
            where = "its folder" if Path(folder).is_dir() else "the checkpoint"
            raise CheckpointError(f"checkpoint {pretrained!r} has no chat template: {where} should hold one")
        cls.limit(processor, _in_order({**cls.limits, **given}))
        return Loaded(options.place(model), processor)

    @classmethod
    def limit(cls, processor: Any, limits: dict[str, int]) -> None:
        """Make a processor keep these limits. limits: those of `cls.limits`, all of them, the least below the most."""

    # Prompts.

    def prepared(self, pictures: Sequence[Any]) -> list[Any]:
        """A prompt's pictures as the processor is given them."""
        return list(pictures)

    def options(self, processor: Any) -> dict[str, Any]:
        """What else the processor is called with."""
        return {}

    def encode(
        self, processor: Any, prompts: Sequence[str], images: Sequence[Sequence[Any]], template: str
    ) -> BatchFeature:
        return self.encode_written(processor, prompts, images, template)[0]

    def encode_written(
        self, processor: Any, prompts: Sequence[str], images: Sequence[Sequence[Any]], template: str
    ) -> tuple[BatchFeature, list[list[Written]] | None]:
        pictures = [self.prepared(row) for row in images]
        inputs = processor(
            text=list(prompts),
            images=pictures if any(pictures) else None,  # a list a prompt, empty where it has none
            padding=True,
            padding_side="left",
            return_text_replacement_offsets=True,
            **{"return_tensors": "pt", **special_tokens(processor, prompts[0]), **self.options(processor)},
        )
        offsets = inputs.pop(_OFFSETS, None)
        inputs = BatchFeature(dict(inputs), tensor_type="pt")
        return inputs, [Written.read(offsets[row]) if pictures[row] else [] for row in range(len(prompts))]

    def picture_sizes(self, written: Sequence[Written]) -> tuple[int, ...]:
        return tuple(one.text.count(self.placeholder) for one in written)

    def pieces(self, prompt: str, template: str, *, offsets: bool = False) -> Pieces:
        return self._pieces(prompt, (), offsets)

    def expanded_pieces(self, prompt: str, template: str, written: Sequence[Written]) -> Pieces:
        return self._pieces(prompt, written, True)

    def _pieces(self, prompt: str, written: Sequence[Written], offsets: bool) -> Pieces:
        tokenizer = self.processor.tokenizer
        if offsets:
            check_offsets(tokenizer)
        special = special_tokens(self.processor, prompt)
        encoded = tokenizer(expanded(prompt, written), return_offsets_mapping=offsets, **special)
        image = self.model.config.image_token_id
        ids = [IMAGE_TAG_ID if i == image else i for i in encoded["input_ids"]]
        if not offsets:
            return ids, [(0, 0)] * len(ids)
        return ids, spans_before(encoded["offset_mapping"], written)


def _in_order(limits: dict[str, int]) -> dict[str, int]:
    """The same limits. Raises InputError where a least is above its most, one of them being a default."""
    for name, least in limits.items():
        most = name.replace("min_", "max_")
        if least > limits[most]:
            raise InputError(f"{name} is {least}, but {most} is {limits[most]}: give both")
    return limits
