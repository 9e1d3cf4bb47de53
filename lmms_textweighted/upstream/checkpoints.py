"""What is used of transformers' checkpoints, processors and tokenizers."""

from __future__ import annotations

from typing import Any

from lmms_textweighted.upstream.models import llava, tokenizer, vision
from lmms_textweighted.upstream.unpromised import TRANSFORMERS, Names

CHECKPOINTS = Names("transformers", TRANSFORMERS)


def names_of(model: Any) -> set[str]:
    return {".".join(name.split(".")[:3]) for name in model.state_dict()}


@CHECKPOINTS("names of a LLaVA's weights", "families.liuhaotian.checkpoint, families.liuhaotian.convert")
def _weights() -> bool:
    found = names_of(llava("LlavaNext"))
    return {
        "model.language_model.embed_tokens",
        "model.language_model.layers",
        "model.multi_modal_projector.linear_1",
        "model.multi_modal_projector.linear_2",
        "model.vision_tower.encoder",
        "model.image_newline",
        "lm_head.weight",
    } <= found


@CHECKPOINTS(
    "names of a CLIP tower's weights: embeddings, encoder, pre_layrnorm, post_layernorm",
    "families.liuhaotian.checkpoint",
)
def _tower() -> bool:
    from transformers import CLIPVisionModel

    found = {name.removeprefix("vision_model.").split(".")[0] for name in CLIPVisionModel(vision()).state_dict()}
    return found == {"embeddings", "encoder", "pre_layrnorm", "post_layernorm"}


@CHECKPOINTS(
    "names of a whole CLIP's weights in a checkpoint; its text tower pools at the highest id where eos_token_id is 2",
    "families.text_tower",
)
def _whole_clip() -> bool:
    import tempfile
    from pathlib import Path

    import torch
    from safetensors import safe_open
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    words: dict[str, Any] = {**small, "vocab_size": 16, "max_position_embeddings": 8, "projection_dim": 4}
    model = CLIPModel(CLIPConfig(text_config=words, vision_config=vision().to_dict(), projection_dim=4))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(str(Path(folder, "model.safetensors")), framework="pt") as file:
            found = set(file.keys())
    wanted = {"text_projection.weight", "visual_projection.weight", "vision_model.post_layernorm.weight"}
    wanted |= {"vision_model.post_layernorm.bias", "text_model.final_layer_norm.weight"}
    text = CLIPTextModelWithProjection(CLIPTextConfig(**words, eos_token_id=2)).eval()
    with torch.inference_mode():
        pooled, cut = (text(input_ids=torch.tensor([ids])).text_embeds for ids in ([3, 9, 2, 4], [3, 9]))
    return wanted <= found and torch.allclose(pooled, cut, atol=1e-5)


@CHECKPOINTS(
    "from_pretrained(None, config=, state_dict=, output_loading_info=True) and its missing_keys, unexpected_keys",
    "families.liuhaotian.checkpoint, families.llava",
)
def _in_memory() -> bool:
    import torch
    from transformers.utils import logging

    state = {name: value.clone() for name, value in llava().state_dict().items()}
    state["lm_head.weight"] += 1
    lacking = state.pop("model.language_model.norm.weight")
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # the lacking name is on purpose
    try:
        model, info = type(llava()).from_pretrained(
            None, config=llava().config, state_dict={**state, "nobody.weight": lacking}, output_loading_info=True
        )
    finally:
        logging.set_verbosity(before)
    return (
        list(info["missing_keys"]) == ["model.language_model.norm.weight"]
        and list(info["unexpected_keys"]) == ["nobody.weight"]
        and torch.equal(model.state_dict()["lm_head.weight"], state["lm_head.weight"])
    )


@CHECKPOINTS(
    "PreTrainedConfig.get_config_dict(folder, revision=, local_files_only=)", "families.loading, leaderboard.geometry"
)
def _config_dict() -> bool:
    from transformers import PreTrainedConfig

    from lmms_textweighted.paths import checkpoint_folder

    folder = str(checkpoint_folder())
    config, _ = PreTrainedConfig.get_config_dict(folder, revision="main", local_files_only=True)
    return config["model_type"] == "llava"


@CHECKPOINTS("text_config.to_dict()['rope_parameters']['rope_theta']", "families.liuhaotian.convert")
def _rope() -> bool:
    return llava().config.get_text_config().to_dict()["rope_parameters"]["rope_theta"] > 0


@CHECKPOINTS(
    "modeling_llava_next.get_anyres_image_grid_shape, unpad_image",
    "families.liuhaotian.processing, families.llava_pictures",
)
def _grid() -> bool:
    import torch
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    shape = tuple(get_anyres_image_grid_shape((10, 20), [[8, 16], [16, 8]], 8))
    return shape == (1, 2) and unpad_image(torch.empty(1, 4, 4), (10, 20)).shape == (1, 2, 4)


@CHECKPOINTS(
    "image_processing_got_ocr2.get_optimal_tiled_canvas((height, width), tile, least, most): (columns, rows)",
    "families.internvl",
)
def _tiles() -> bool:
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    return tuple(get_optimal_tiled_canvas((10, 20), (8, 8), 1, 4)) == (2, 1)


@CHECKPOINTS("image_processing_utils.select_best_resolution((height, width), [(height, width), …])", "families.images")
def _resolution() -> bool:
    from transformers.image_processing_utils import select_best_resolution

    return tuple(select_best_resolution((10, 20), [(8, 16), (16, 8)])) == (8, 16)


@CHECKPOINTS(
    "image_processing_base.ImageProcessingMixin in a LlavaProcessor, image_utils.make_flat_list_of_images",
    "families.images",
)
def _image_processor() -> bool:
    from PIL import Image
    from transformers import CLIPImageProcessor, LlavaProcessor
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.image_utils import make_flat_list_of_images

    class Watching(ImageProcessingMixin):
        given: Any = None

        def __call__(self, images: Any, **kwargs: Any) -> Any:
            self.given = make_flat_list_of_images(images)
            plain = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
            return plain(self.given, return_tensors="pt")

        model_input_names = ("pixel_values",)

    watching, picture = Watching(), Image.new("RGB", (8, 8))
    processor: Any = LlavaProcessor(
        image_processor=CLIPImageProcessor(),
        tokenizer=tokenizer(),
        patch_size=4,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
    )
    processor.image_processor = watching
    ids = processor(images=[[picture]], text=["<image> red"], padding=True, return_tensors="pt")["input_ids"]
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    return watching.given == [picture] and int((ids == token).sum()) == 4


@CHECKPOINTS(
    "a CLIP image processor's size, crop_size, image_mean, image_std, resample, rescale_factor, do_…", "families.images"
)
def _numbers() -> bool:
    from transformers import CLIPImageProcessor

    names = (
        "size",
        "crop_size",
        "image_mean",
        "image_std",
        "resample",
        "rescale_factor",
        "do_center_crop",
        "do_resize",
    )
    plain: Any = CLIPImageProcessor()
    again: Any = CLIPImageProcessor(**{name: getattr(plain, name) for name in names})
    return again.crop_size["height"] == plain.crop_size["height"] and "shortest_edge" in again.size


@CHECKPOINTS("tokenizer.backend_tokenizer.pre_tokenizer", "families.pieces")
def _backend() -> bool:
    from tokenizers.pre_tokenizers import Metaspace

    changed = tokenizer()
    changed.backend_tokenizer.pre_tokenizer = Metaspace(prepend_scheme="first")
    before = changed.backend_tokenizer.pre_tokenizer
    return isinstance(before, Metaspace) and before.prepend_scheme == "first"


@CHECKPOINTS("transformers.utils.is_flash_attn_2_available()", "doctor.machine")
def _flash() -> bool:
    from transformers.utils import is_flash_attn_2_available

    return is_flash_attn_2_available() in (True, False)


@CHECKPOINTS("no hub under huggingface_hub.constants.HF_HUB_OFFLINE, asked at every call", "hub")
def _offline() -> bool:
    from transformers import PreTrainedConfig

    from lmms_textweighted.hub import offline

    with offline():
        try:
            PreTrainedConfig.get_config_dict("nobody/nothing-of-this-name")
        except OSError as error:
            return "offline" in str(error).lower() or "cach" in str(error).lower()
    return False
