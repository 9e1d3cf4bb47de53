"""The model arguments of `llava_textweighted` and `vlm_textweighted`: names, defaults and checks, in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.text_tower import no_text_tower
from lmms_textweighted.errors import InputError, unknown
from lmms_textweighted.families import DEFAULT_CHECKPOINT, LoadOptions
from lmms_textweighted.families.images import check_aspect_ratio
from lmms_textweighted.inference import StatedLengths
from lmms_textweighted.methods import DEFAULT_STRATEGY, Method, find_method, make_plan, strategy_digest
from lmms_textweighted.methods.budget import BUDGETS, Budget, Geometry
from lmms_textweighted.pictures import PICTURE_LIMITS
from lmms_textweighted.prompts import check_system_prompt, check_template


@dataclass(frozen=True)
class Settings:
    """Everything `--model_args` can say, with its defaults.

    pretrained: `tiny`, `tiny-qwen`, a folder or a hub name. strategy, pruning_layer: see `methods.make_plan`.
    keep_tokens, keep_ratio, equivalent_tokens, flops_ratio: see `methods.budget.Budget`. text_scope, keep_scope,
    positions: see `plan.Plan`; positions None: the method's own. conv_template: a name in `prompts.TEMPLATES`; None
    suits the checkpoint. text_tower: a folder or hub name of a CLIP, for methods that need its text tower; see
    `families.text_tower`. loader, vision_tower, image_aspect_ratio: see `families.LoadOptions`; a stated
    image_aspect_ratio goes before a task's. min_pixels, max_pixels, min_patches, max_patches: see there. system_prompt:
    in front of a conversation without one; None is what lmms-eval's own model of the kind has, an empty one is none.
    seed: of the `random` strategy. ranks: measure the last layer's ranks for every task (the rank tasks ask for them
    themselves). system_length, image_length: checked against every input. The rest: see `families.LoadOptions`.
    """

    pretrained: str = DEFAULT_CHECKPOINT
    strategy: str | Method = DEFAULT_STRATEGY
    pruning_layer: int | None = None
    keep_tokens: int | None = None
    keep_ratio: float | None = None
    equivalent_tokens: float | None = None
    flops_ratio: float | None = None
    text_scope: str = "after"
    keep_scope: str = "image"
    positions: str | None = None
    conv_template: str | None = None
    loader: str = "auto"
    vision_tower: str | None = None
    text_tower: str | None = None
    image_aspect_ratio: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    min_patches: int | None = None
    max_patches: int | None = None
    system_prompt: str | None = None
    seed: int = 0
    ranks: bool = False
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    attn_implementation: str | None = None
    revision: str = "main"
    system_length: int | None = None
    image_length: int | None = None

    @classmethod
    def parse(cls, arguments: dict[str, Any]) -> Settings:
        """From keyword arguments. Raises InputError for an unknown name (with the nearest one) or a wrong value."""
        known = [item.name for item in fields(cls)]
        for name in arguments:
            if name not in known:
                raise InputError(unknown("model argument", name, known))
        settings = cls(**arguments)
        if settings.conv_template is not None:
            check_template(settings.conv_template)
        if settings.image_aspect_ratio is not None:
            check_aspect_ratio(settings.image_aspect_ratio)
        if not isinstance(settings.seed, int) or isinstance(settings.seed, bool):
            raise InputError(f"seed is {settings.seed!r}: give a whole number")
        if not isinstance(settings.ranks, bool):
            raise InputError(f"ranks is {settings.ranks!r}: give True or False")
        check_system_prompt(settings.system_prompt)
        settings.load_options()
        if settings.plan().reads_text and settings.text_tower is None:
            raise no_text_tower(settings.plan().name)
        return settings

    def budget(self) -> Budget | None:
        """The one that is given, if any. Raises PlanError as `Budget` does."""
        given = {name: getattr(self, name) for name in BUDGETS}
        return Budget.of(**given) if any(value is not None for value in given.values()) else None

    def plan(self, geometry: Geometry | None = None) -> Plan:
        """The plan on a model. Without its geometry what is searched for is not yet: only that it can be asked for."""
        budget = self.budget()
        method = find_method(self.strategy)
        if geometry is None and budget is not None and budget.is_solved and method.takes_budget:
            budget = None
        return method.solve(
            budget,
            geometry,
            pruning_layer=self.pruning_layer,
            text_scope=self.text_scope,
            keep_scope=self.keep_scope,
            positions=self.positions,
        )

    def check(self, geometry: Geometry) -> None:
        """Raise PlanError when the plan does not fit the model; what is stated must fit even for `none`."""
        image_tokens = geometry.image_tokens
        if self.keep_scope == "prompt":  # how many images a prompt has, only its document tells
            image_tokens = None
        self.plan(geometry).check(geometry.layers, image_tokens)
        budget = self.budget()
        method = find_method(self.strategy)
        if not method.removes and not method.takes_budget and (self.pruning_layer is not None or budget is not None):
            stated = make_plan(
                DEFAULT_STRATEGY,
                pruning_layer=self.pruning_layer,
                **({budget.kind: budget.value} if budget else {"keep_ratio": 1.0}),
                keep_scope=self.keep_scope,
                geometry=geometry,
            )
            stated.check(geometry.layers, image_tokens)

    def load_options(self) -> LoadOptions:
        return LoadOptions(
            device=self.device,
            dtype=self.dtype,
            device_map=self.device_map,
            attn_implementation=self.attn_implementation,
            revision=str(self.revision),
            loader=self.loader,
            vision_tower=self.vision_tower,
            image_aspect_ratio=self.image_aspect_ratio,
            **{name: getattr(self, name) for name in PICTURE_LIMITS},
        )

    def stated(self) -> StatedLengths:
        return StatedLengths(system=self.system_length, image=self.image_length)

    def resolved(self, geometry: Geometry | None = None) -> dict[str, Any]:
        """The settings as they act: the plan spelled out, nothing left to a default.

        A plan of a file, and a method of one's own, is also told by its file's digest.
        """
        data = {key: value for key, value in asdict(self).items() if value is not None}
        for key in ("strategy", "pruning_layer", "positions", *BUDGETS):
            data.pop(key, None)
        digest = self.digest()
        named = {} if digest is None else {"strategy_digest": digest}
        return {**data, **named, **self.plan(geometry).to_dict()}

    def digest(self) -> str | None:
        """What tells two contents of the strategy's file apart; None where the strategy is no file's."""
        return strategy_digest(self.strategy)
