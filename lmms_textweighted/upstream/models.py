"""What is used of transformers' LLaVAs, their processors, and how checkpoints are read."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from lmms_textweighted.upstream.unpromised import TRANSFORMERS, Names

MODELS = Names("transformers", TRANSFORMERS)
_IMAGE = 15


@functools.cache
def llava(kind: str = "Llava") -> Any:
    """A random LLaVA: pictures of 2 x 2 patches, a Llama of one layer."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision(),
        text_config=transformers.LlamaConfig(
            vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        ),
        image_token_index=_IMAGE,
        **({"image_seq_length": 4} if kind == "Llava" else {"image_grid_pinpoints": [[16, 8]]}),
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()


def vision() -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )


def inputs(**arguments: Any) -> dict[str, Any]:
    """One prompt: a word, a picture's four tokens, two words."""
    import torch

    ids = torch.tensor([[1, *[_IMAGE] * 4, 2, 3]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.zeros(1, 3, 8, 8),
        **arguments,
    }


def tokenizer() -> Any:
    """The embedded model's."""
    from transformers import AutoTokenizer

    from lmms_textweighted.paths import checkpoint_folder

    return AutoTokenizer.from_pretrained(checkpoint_folder())


def names_of(model: Any) -> set[str]:
    return {".".join(name.split(".")[:3]) for name in model.state_dict()}


@MODELS("config.image_token_id, config.image_seq_length, config.get_text_config()", "families.image_tokens")
def _config() -> bool:
    config = llava().config
    text = config.get_text_config()
    return (config.image_token_id, config.image_seq_length, text.num_hidden_layers) == (_IMAGE, 4, 1)


@MODELS("model.get_decoder(): the module with the layers", "engine.decoder")
def _decoder() -> bool:
    return len(llava().get_decoder().layers) == 1


@MODELS(
    "model.model.get_image_features, called through the instance: pooler_output is one [tokens, D] a picture",
    "families.image_tokens",
)
def _features() -> bool:
    import torch

    model, given = llava(), []
    original = model.model.get_image_features

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        given.append(original(*args, **kwargs))
        return given[-1]

    model.model.get_image_features = watched
    try:
        with torch.inference_mode():
            model(**inputs())
    finally:
        del model.model.get_image_features
    (output,) = given
    return [tuple(feature.shape) for feature in getattr(output, "pooler_output", output)] == [(4, 16)]


@MODELS(
    "generate: the prompt in one forward with input_ids, attention_mask and, made before, mm_encoder_outputs['image'] "
    "(or pixel_values)",
    "families.image_tokens",
)
def _generate() -> bool:
    import torch

    model, calls = llava(), []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    try:
        with torch.inference_mode():
            model.generate(**inputs(), max_new_tokens=2, do_sample=False, eos_token_id=None, pad_token_id=0)
    finally:
        hook.remove()
    first, second = (kwargs for _, kwargs in calls)
    made = (first.get("mm_encoder_outputs") or {}).get("image")
    if made is None and first.get("pixel_values") is None:
        return False
    sizes = [4] if made is None else [len(feature) for feature in getattr(made, "pooler_output", made)]
    return sizes == [4] and first["input_ids"].shape[1] == 7 and second["input_ids"].shape[1] == 1


@MODELS(
    "the decoder is called with inputs_embeds, attention_mask and the KV cache by keyword",
    "engine.pruner, engine.fanout",
)
def _decoder_call() -> bool:
    import torch

    model, calls = llava(), []
    decoder = model.get_decoder()
    hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    try:
        with torch.inference_mode():
            model(**inputs(), use_cache=True)
    finally:
        hook.remove()
    (kwargs,) = calls
    named = {"inputs_embeds", "attention_mask"} <= set(kwargs) and bool({"cache", "past_key_values"} & set(kwargs))
    return named and kwargs["attention_mask"].shape == (1, 7)


@MODELS("stopping criteria in a list, asked once for each new token", "inference.decoding")
def _criteria() -> bool:
    import torch
    from transformers import StoppingCriteria

    class Counting(StoppingCriteria):
        asked = 0

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            self.asked += 1
            return torch.zeros(len(input_ids), dtype=torch.bool)

    counting = Counting()
    with torch.inference_mode():
        llava().generate(**inputs(), max_new_tokens=3, eos_token_id=None, pad_token_id=0, stopping_criteria=[counting])
    return counting.asked == 3


@MODELS("StopStringCriteria(tokenizer, strings)", "inference.decoding")
def _stop_strings() -> bool:
    from transformers import StopStringCriteria

    criteria: Any = StopStringCriteria(tokenizer(), ["green"])
    ends = [criteria(tokenizer()(text, return_tensors="pt")["input_ids"], None) for text in ("is green", "is red")]
    return bool(ends[0].all()) and not bool(ends[1].any())


@MODELS("logits_to_keep, an argument of forward", "inference.pruned")
def _logits() -> bool:
    import torch

    if "logits_to_keep" not in inspect.signature(llava().forward).parameters:
        return False
    with torch.inference_mode():
        return llava()(**inputs(), logits_to_keep=1).logits.shape == (1, 1, 16)


@MODELS("names of a LLaVA's weights", "families.liuhaotian.checkpoint, families.liuhaotian.convert")
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


@MODELS(
    "names of a CLIP tower's weights: embeddings, encoder, pre_layrnorm, post_layernorm",
    "families.liuhaotian.checkpoint",
)
def _tower() -> bool:
    from transformers import CLIPVisionModel

    found = {name.removeprefix("vision_model.").split(".")[0] for name in CLIPVisionModel(vision()).state_dict()}
    return found == {"embeddings", "encoder", "pre_layrnorm", "post_layernorm"}


@MODELS(
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


@MODELS(
    "PreTrainedConfig.get_config_dict(folder, revision=, local_files_only=)", "families.loading, leaderboard.geometry"
)
def _config_dict() -> bool:
    from transformers import PreTrainedConfig

    from lmms_textweighted.paths import checkpoint_folder

    folder = str(checkpoint_folder())
    config, _ = PreTrainedConfig.get_config_dict(folder, revision="main", local_files_only=True)
    return config["model_type"] == "llava"


@MODELS("text_config.to_dict()['rope_parameters']['rope_theta']", "families.liuhaotian.convert")
def _rope() -> bool:
    return llava().config.get_text_config().to_dict()["rope_parameters"]["rope_theta"] > 0


@MODELS("modeling_llava_next.get_anyres_image_grid_shape, unpad_image", "families.liuhaotian.processing")
def _grid() -> bool:
    import torch
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    shape = tuple(get_anyres_image_grid_shape((10, 20), [[8, 16], [16, 8]], 8))
    return shape == (1, 2) and unpad_image(torch.empty(1, 4, 4), (10, 20)).shape == (1, 2, 4)


@MODELS("image_processing_utils.select_best_resolution((height, width), [(height, width), …])", "families.images")
def _resolution() -> bool:
    from transformers.image_processing_utils import select_best_resolution

    return tuple(select_best_resolution((10, 20), [(8, 16), (16, 8)])) == (8, 16)


@MODELS(
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


@MODELS(
    "a CLIP image processor's size, crop_size, image_mean, image_std, resample, rescale_factor, do_…", "families.llava"
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


@MODELS("tokenizer.backend_tokenizer.pre_tokenizer", "families.pieces")
def _backend() -> bool:
    from tokenizers.pre_tokenizers import Metaspace

    changed = tokenizer()
    changed.backend_tokenizer.pre_tokenizer = Metaspace(prepend_scheme="first")
    before = changed.backend_tokenizer.pre_tokenizer
    return isinstance(before, Metaspace) and before.prepend_scheme == "first"


@MODELS("transformers.utils.is_flash_attn_2_available()", "doctor.machine")
def _flash() -> bool:
    from transformers.utils import is_flash_attn_2_available

    return is_flash_attn_2_available() in (True, False)


@MODELS("no hub under huggingface_hub.constants.HF_HUB_OFFLINE, asked at every call", "hub")
def _offline() -> bool:
    from transformers import PreTrainedConfig

    from lmms_textweighted.hub import offline

    with offline():
        try:
            PreTrainedConfig.get_config_dict("nobody/nothing-of-this-name")
        except OSError as error:
            return "offline" in str(error).lower() or "cach" in str(error).lower()
    return False
