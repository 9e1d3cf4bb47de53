"""What is used of transformers' LLaVAs: their arguments, features and generation. Tried on a random one."""

from __future__ import annotations

import copy
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


@MODELS("config.image_token_id, config.image_seq_length, config.get_text_config()", "families.image_tokens")
def _config() -> bool:
    config = llava().config
    text = config.get_text_config()
    return (config.image_token_id, config.image_seq_length, text.num_hidden_layers) == (_IMAGE, 4, 1)


@MODELS(
    "model.model.vision_tower of a LLaVA takes interpolate_pos_encoding=, and config.image_seq_length may change",
    "families.downsample",
)
def _smaller_pictures() -> bool:
    import torch

    with torch.inference_mode():
        features = llava().model.vision_tower(torch.zeros(1, 3, 4, 4), interpolate_pos_encoding=True)
    return features.last_hidden_state.shape[1] == 2  # the class token's and one patch's


@MODELS(
    "model.model.vision_tower: a list of layers with self_attn, whose config is asked at every call and whose kernel "
    "gets queries and keys [B, H, S, D] and scaling=; their output is [B, S, W]; class_embedding where CLIP has one",
    "engine.tower, families.towers",
)
def _tower() -> bool:
    import torch
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, seen = llava(), []
    (layers,) = (part for part in model.model.vision_tower.modules() if isinstance(part, torch.nn.ModuleList))
    sdpa: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def observed(module: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((tuple(query.shape), tuple(key.shape), kwargs["scaling"] == 8**-0.5))
        return sdpa(module, query, key, *args, **kwargs)

    attention: Any = layers[0].self_attn
    config = attention.config
    attention.config = copy.copy(config)
    attention.config._attn_implementation_internal = "tower_probe"
    AttentionInterface.register("tower_probe", observed)
    hook = layers[0].register_forward_hook(lambda *given: seen.append(tuple(given[2].shape)))
    try:
        with torch.inference_mode():
            model.model.vision_tower(torch.zeros(1, 3, 8, 8))
    finally:
        hook.remove()
        attention.config = config
        AttentionInterface.register("tower_probe", sdpa)
    shape = (1, 2, 5, 8)
    classed = hasattr(model.model.vision_tower.embeddings, "class_embedding")
    return seen == [(shape, shape, True), (1, 5, 16)] and classed


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


@MODELS(
    "Qwen3-VL's decoder: _deepstack_process(hidden, mask, features) behind each of its first layers, its arguments "
    "visual_pos_masks and deepstack_visual_embeds",
    "engine.deepstack",
    since="5.23 to 5.24",
)
def _deepstack() -> bool:
    import torch
    from transformers import Qwen3VLTextConfig, Qwen3VLTextModel

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    decoder: Any = Qwen3VLTextModel(
        Qwen3VLTextConfig(vocab_size=16, num_hidden_layers=2, num_key_value_heads=2, rope_parameters=rope, **sizes)
    ).eval()
    seen: list[tuple] = []
    original = decoder._deepstack_process

    def watched(*given: Any) -> Any:
        seen.append(given[1:])
        return original(*given)

    decoder._deepstack_process = watched
    mask, features = torch.tensor([[False, True, True]]), [torch.ones(2, 16)]
    with torch.inference_mode():
        decoder(inputs_embeds=torch.zeros(1, 3, 16), visual_pos_masks=mask, deepstack_visual_embeds=features)
    return len(seen) == 1 and seen[0][0] is mask and seen[0][1] is features[0]


@MODELS(
    "M-RoPE's axes are folded before the layers: their position_embeddings are cos, sin [B, S, D]",
    "engine.shortened, engine.fanout",
    since="5.23 to 5.24",
)
def _folded() -> bool:
    import torch
    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    text = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "rope_parameters": rope}
    config: Any = Qwen2_5_VLConfig(text_config=text)
    embedding = Qwen2_5_VLRotaryEmbedding(config.text_config)
    hidden, flat = torch.zeros(1, 3, 16), torch.arange(3)[None]
    axes = [embedding(hidden, positions) for positions in (flat.expand(3, 1, 3), flat)]
    return axes[0][0].shape == (1, 3, 8) and all(torch.equal(a, b) for a, b in zip(*axes, strict=True))


@MODELS(
    "processor(return_text_replacement_offsets=True): for each prompt one entry a picture, with span and replacement",
    "families.processor_family",
    since="5.23 to 5.24",
)
def _replacements() -> bool:
    from PIL import Image
    from transformers import AutoProcessor

    from lmms_textweighted.paths import checkpoint_folder

    processor = AutoProcessor.from_pretrained(checkpoint_folder())
    given = processor(text=["a <image> b"], images=[Image.new("RGB", (8, 8))], return_text_replacement_offsets=True)[
        "text_replacement_offsets"
    ]
    return [(tuple(one["span"]), one["replacement"].count("<image>")) for one in given[0]] == [((2, 9), 576)]
