"""What is used of the original `llava` package, haotian-liu's. Only where it is installed: nobody needs it."""

from __future__ import annotations

import functools
import importlib
import inspect
import tempfile
from typing import Any

from lmms_textweighted.upstream.models import vision
from lmms_textweighted.upstream.unpromised import Names

LLAVA = Names("llava-torch", "1.2.2.post1")
_LLAMA = "llava.model.language_model.llava_llama"


def _classes() -> Any:
    module = importlib.import_module(_LLAMA)
    return module.LlavaLlamaForCausalLM, module.LlavaConfig


@functools.cache
def _model() -> Any:
    """A random model of the package with a tower that is not loaded, of which only the config is there."""
    model_class, config_class = _classes()
    with tempfile.TemporaryDirectory() as tower:
        vision().save_pretrained(tower)
        return model_class(_config(config_class, tower))


def _config(config_class: Any, tower: str) -> Any:
    return config_class(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        mm_vision_tower=tower,
        mm_hidden_size=16,
        mm_vision_select_layer=-2,
        mm_projector_type="mlp2x_gelu",
        delay_load=True,
        unfreeze_mm_vision_tower=False,
    )


@LLAVA("llava.constants: IMAGE_TOKEN_INDEX is -200, IGNORE_INDEX -100", "families.liuhaotian.splice")
def _constants() -> bool:
    from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

    return (IMAGE_TOKEN_INDEX, IGNORE_INDEX) == (-200, -100)


@LLAVA(
    f"{_LLAMA}: LlavaLlamaForCausalLM, LlavaConfig, importable beside this transformers", "families.liuhaotian.package"
)
def _importable() -> bool:
    model_class, config_class = _classes()
    return (model_class.__name__, config_class.__name__) == ("LlavaLlamaForCausalLM", "LlavaConfig")


@LLAVA(
    "prepare_inputs_labels_for_multimodal(input_ids, position_ids, attention_mask, past_key_values, labels, images, …)"
    ": without images the six are handed back",
    "families.liuhaotian.splice",
)
def _splicer() -> bool:
    import torch

    model_class, _ = _classes()
    expected = ["input_ids", "position_ids", "attention_mask", "past_key_values", "labels", "images"]
    splice = model_class.prepare_inputs_labels_for_multimodal
    ids = torch.tensor([[1, 2]])
    given = _model().prepare_inputs_labels_for_multimodal(ids, None, None, None, None, None)
    return [*inspect.signature(splice).parameters][1:7] == expected and len(given) == 6 and given[0] is ids


@LLAVA(
    "with images: -100 in the labels where features stand, one row of embeddings for each",
    "families.liuhaotian.splice",
)
def _spliced() -> bool:
    import torch

    model = _model()
    model.encode_images = lambda images: torch.zeros(len(images), 4, 16)  # what the tower would see does not matter
    ids = torch.tensor([[1, -200, 2]])
    given = model.prepare_inputs_labels_for_multimodal(
        ids, None, torch.ones_like(ids), None, ids, torch.zeros(1, 3, 8, 8), image_sizes=[(8, 8)]
    )
    _, _, mask, _, embeddings, labels = given
    return labels.tolist() == [[1, -100, -100, -100, -100, 2]] and embeddings.shape == (1, 6, 16) and bool(mask.all())


@LLAVA(
    "get_vision_tower(): is_loaded, load_model(), num_patches, image_processor, vision_tower",
    "families.liuhaotian.package",
)
def _tower() -> bool:
    tower = _model().get_vision_tower()
    loading = inspect.getsource(type(tower).load_model)
    made = all(f"self.{name} = " in loading for name in ("is_loaded", "image_processor", "vision_tower"))
    return not tower.is_loaded and tower.num_patches == 4 and made


@LLAVA("get_model().mm_projector", "families.liuhaotian.package")
def _projector() -> bool:
    return len(list(_model().get_model().mm_projector.parameters())) == 4


@LLAVA("generate(inputs, images=, image_sizes=)", "families.liuhaotian.splice, families.liuhaotian.package")
def _generate() -> bool:
    model_class, _ = _classes()
    return {"inputs", "images", "image_sizes"} <= set(inspect.signature(model_class.generate).parameters)


@LLAVA("mm_utils.process_images(images, image_processor, config)", "families.images")
def _process() -> bool:
    from llava.mm_utils import process_images

    return [*inspect.signature(process_images).parameters] == ["images", "image_processor", "model_cfg"]
