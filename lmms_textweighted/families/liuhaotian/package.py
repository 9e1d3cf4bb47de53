"""Load a checkpoint in liuhaotian format with the original `llava` package: haotian-liu's, or LLaVA-NeXT's."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers.modeling_utils
import transformers.pytorch_utils
from transformers import GenerationConfig

from lmms_textweighted.engine.splice import replaced
from lmms_textweighted.errors import CheckpointError, InputError, first_line
from lmms_textweighted.families.liuhaotian.checkpoint import (
    TOWER_PREFIX,
    aspect_ratio,
    find_tower,
    grid_pinpoints,
    is_derived,
    load_tokenizer,
)
from lmms_textweighted.families.liuhaotian.processing import TagProcessor
from lmms_textweighted.families.liuhaotian.splice import take_cache_by_its_name
from lmms_textweighted.families.loading import Loaded, LoadOptions, check_complete, quiet_transformers
from lmms_textweighted.families.weights import LOAD_ERRORS, load_problem, notice_pickles, read_weights, stored_dtype

HOW_TO_GET_IT = "pip install --no-deps llava-torch==1.2.2.post1"

# Architecture -> the package's module and the config class in it. Qwen's is LLaVA-NeXT's only.
_MODULES = {
    "LlavaLlamaForCausalLM": ("llava.model.language_model.llava_llama", "LlavaConfig"),
    "LlavaMistralForCausalLM": ("llava.model.language_model.llava_mistral", "LlavaMistralConfig"),
    "LlavaQwenForCausalLM": ("llava.model.language_model.llava_qwen", "LlavaQwenConfig"),
}
# LLaVA-NeXT's modules import these from where transformers 4 had them.
_MOVED = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")


class PackageError(InputError):
    """The installed package cannot run the checkpoint with the installed transformers."""


def is_installed() -> bool:
    """Whether the real package is there: `llava` on the package index is an empty placeholder."""
    spec = importlib.util.find_spec("llava")  # looked at, not imported: LLaVA-NeXT's needs help for that, see below
    return spec is not None and any((Path(place) / "model").is_dir() for place in spec.submodule_search_locations or [])


def load(pretrained: str, folder: Path, config: dict[str, Any], options: LoadOptions) -> Loaded:
    """Load by the package's own classes. Raises CheckpointError for a checkpoint that will not do, PackageError for a
    package that will not, InputError where there is none."""
    architecture = (config.get("architectures") or ["LlavaLlamaForCausalLM"])[0]
    model_class, config_class = _classes(pretrained, architecture)
    if config.get("mm_use_im_start_end"):
        raise CheckpointError(
            f"checkpoint {pretrained!r} has mm_use_im_start_end=True: tags around every picture are not supported"
        )
    tower = find_tower(folder, config, options.vision_tower)
    notice_pickles(folder)
    ratio = aspect_ratio(config, options.image_aspect_ratio)
    with quiet_transformers():  # released configs say `model_type: llava`
        settings = config_class.from_pretrained(folder)
    settings.mm_vision_tower = tower.path
    settings.tokenizer_padding_side = "left"
    settings.image_aspect_ratio = ratio
    # The tower is loaded below: inside `from_pretrained` there are no devices yet.
    settings.delay_load = True
    arguments = options.model_arguments()
    if arguments["dtype"] == "auto":
        arguments["dtype"] = stored_dtype(folder)
    settings.unfreeze_mm_vision_tower = False
    settings.mm_tunable_parts = ""
    try:
        with quiet_transformers():  # a tower inside the checkpoint would be a long list of unexpected names
            model, info = model_class.from_pretrained(folder, config=settings, output_loading_info=True, **arguments)
            own_tower = model.get_vision_tower()
            if not own_tower.is_loaded:
                own_tower.load_model()
    except LOAD_ERRORS as error:
        raise CheckpointError(f"checkpoint {pretrained!r} cannot be loaded: {load_problem(error)}") from error
    except (TypeError, AttributeError) as error:  # LLaVA-NeXT's Mistral and Qwen take their configs' rope away
        raise PackageError(_not_working(architecture, error)) from error
    check_complete(pretrained, info["missing_keys"])
    other = sorted(n for n in info["unexpected_keys"] if not n.startswith(TOWER_PREFIX) and not is_derived(n))
    if other:
        raise CheckpointError(
            f"checkpoint {pretrained!r} has weights that {architecture} has no place for: {other[0]!r}"
        )
    _fill_tower(pretrained, own_tower.vision_tower, folder)
    projector = next(model.get_model().mm_projector.parameters(), None)  # where device_map put it
    own_tower.to(device=options.resolved_device if projector is None else projector.device, dtype=model.dtype)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    processor = TagProcessor(load_tokenizer(folder), own_tower.image_processor, ratio, grid_pinpoints(config), settings)
    processor.takes_modalities = "modalities" in inspect.signature(model_class.forward).parameters
    if "anyres_max" in ratio and not processor.takes_modalities:
        raise InputError(f"image_aspect_ratio is {ratio!r}, which LLaVA-NeXT's llava package knows, this one does not")
    # For good: the model is ours, and must also generate where nothing is pruned.
    take_cache_by_its_name(model)
    _generate_from_input_ids(model)
    return Loaded(options.place(model), processor)


def _generate_from_input_ids(model: Any) -> None:
    """Let `generate` take the processor's `input_ids`, as transformers' models do; the package calls them inputs."""
    generate = model.generate

    @functools.wraps(generate)
    def renamed(inputs: Any = None, *args: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        return generate(input_ids if inputs is None else inputs, *args, **kwargs)

    model.generate = renamed


def _classes(pretrained: str, architecture: str) -> tuple[Any, Any]:
    if not is_installed():
        raise InputError(
            f"loader=llava needs the llava package: {HOW_TO_GET_IT} (`llava` itself is an empty placeholder)"
        )
    if architecture not in _MODULES:
        raise CheckpointError(
            f"checkpoint {pretrained!r} has the architecture {architecture!r}, which is not supported: known are "
            f"{', '.join(_MODULES)}"
        )
    name, config_name = _MODULES[architecture]
    # At every step it hands the KV cache on under its old name, of which transformers 5.24 warns.
    warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning, module=r"llava\.")
    try:
        with _names_of_transformers_4():
            module = importlib.import_module(name)
    except ImportError as error:
        raise PackageError(_not_working(architecture, error)) from error
    return getattr(module, architecture), getattr(module, config_name)


def _not_working(architecture: str, error: Exception) -> str:
    advice = "install LLaVA-NeXT's" if "Qwen" in architecture else f"loader=hf, or {HOW_TO_GET_IT}"
    problem = f"has no working {architecture} with this transformers ({first_line(error)})"
    return f"the installed llava package {problem}: {advice}"


@contextmanager
def _names_of_transformers_4() -> Iterator[None]:
    """While the package is imported, three helpers stand where transformers 4 had them."""
    home: Any = transformers.modeling_utils
    with ExitStack() as stack:
        for name in _MOVED:
            if not hasattr(home, name):
                stack.enter_context(replaced(home, name, getattr(transformers.pytorch_utils, name, _gone)))
        yield


def _gone(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("this transformers helper is gone; only the package's Q-Former used it")


def _fill_tower(pretrained: str, tower: Any, folder: Path) -> None:
    """A tower that was trained with the rest (LLaVA-1.6) has its weights in the checkpoint, not in CLIP's folder."""
    found = read_weights(folder, lambda name: name.startswith(TOWER_PREFIX))
    if not found:
        return
    own = tower.state_dict()
    state = {}
    for name, value in found.items():
        short = name.removeprefix(TOWER_PREFIX)
        state[short if short in own else short.removeprefix("vision_model.")] = value
    try:
        missing, unexpected = tower.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f"checkpoint {pretrained!r}: its vision tower does not fit: {first_line(error)}"
        ) from error
    persistent = [name for name in missing if isinstance(own[name], torch.Tensor)]
    if persistent or unexpected:
        raise CheckpointError(f"the vision tower in {pretrained!r} does not fit: see {(persistent or unexpected)[0]!r}")
