"""lmms-eval's own models beside ours: which one a kind has, how both are asked, and what each of them was given."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from lmms_eval.api.instance import Instance
from transformers import AutoModelForImageTextToText

# model_type -> lmms-eval's chat class. qwen2_vl has none: its simple class makes JPEGs of pictures.
THEIRS: dict[str, str] = {
    **dict.fromkeys(("llava", "llava_next", "llava_onevision"), "lmms_eval.models.chat.llava_hf.LlavaHf"),
    "qwen2_5_vl": "lmms_eval.models.chat.qwen2_5_vl.Qwen2_5_VL",
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe"), "lmms_eval.models.chat.qwen3_vl.Qwen3_VL"),
    "internvl": "lmms_eval.models.chat.internvl_hf.InternVLHf",
    **dict.fromkeys(
        ("idefics3", "smolvlm", "mistral3", "glm4v", "glm46v"), "lmms_eval.models.chat.huggingface.Huggingface"
    ),
}


@contextmanager
def their_model(kind: str, folder: str, device: str = "cpu") -> Iterator[Any]:
    """lmms-eval's own model of a checkpoint, made float32. `loaded_as`: the type it had before, bfloat16 mostly."""
    module, name = THEIRS[kind].rsplit(".", 1)
    general = name == "Huggingface"
    with ExitStack() as stack:
        stack.enter_context(mock.patch("sys.argv", ["lmms-eval"]))
        if general:  # under transformers 5 it looks model types up among classes, and takes a headless model
            stack.enter_context(mock.patch(f"{module}.AutoModel", AutoModelForImageTextToText))
        made = getattr(importlib.import_module(module), name)
        theirs = made(pretrained=folder, device=device, device_map=device, batch_size=1)
        theirs.loaded_as = theirs._model.dtype
        theirs._model.float()
        if general:
            theirs.processor = WithoutEmpty(theirs.processor)
        yield theirs


class WithoutEmpty:
    """A processor without the empty lists of audios, videos and pictures that lmms-eval's `huggingface` gives it: from
    5.23 on transformers refuses `audios`."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, **kwargs: Any) -> Any:
        return self.processor(**{name: value for name, value in kwargs.items() if value != []})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)


def ask(model: Any, contents: Sequence[list[dict[str, Any]]], kwargs: dict[str, Any]) -> list[str]:
    """The answers to conversations of one user turn each, as lmms-eval asks for them. contents: of each turn."""
    model.task_dict = {"made": {"test": [{"content": content} for content in contents]}}

    def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [dict(piece) for piece in document["content"]]}]

    requests = []
    for number, content in enumerate(contents):
        metadata = {"task": "made", "doc_id": number, "repeats": 1}
        arguments = (content[-1]["text"], messages, dict(kwargs), number, "made", "test")
        requests.append(Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata))
    return [answer.text if hasattr(answer, "text") else answer for answer in model.generate_until(requests)]


class Watched:
    """What a model is given by `generate`, and what it makes of the prompts: one entry a row."""

    def __init__(self, model: Any, image_id: int) -> None:
        self.model, self.image_id, self.generate = model, image_id, model.generate
        self.rows: list[dict[str, Any]] = []
        model.generate = self

    def stop(self) -> None:
        """Leave the model as it was."""
        del self.model.generate

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        ids = args[0] if args else kwargs["input_ids"]
        caught: list[torch.Tensor] = []
        hook = self.model.get_output_embeddings().register_forward_hook(lambda _, __, out: caught.append(out))
        try:
            output = self.generate(*args, **kwargs)
        finally:
            hook.remove()
        pixels = self._pixels(kwargs, ids)
        for row, valid in enumerate(kwargs["attention_mask"].bool()):
            logits = caught[0][row, -1].float().cpu()
            self.rows.append({"ids": ids[row][valid].tolist(), "pixels": pixels[row], "logits": logits})
        return output

    def _pixels(self, kwargs: dict[str, Any], ids: torch.Tensor) -> list[bytes]:
        """Each row's part of the pixels, without what pads a batch."""
        given = kwargs.get("pixel_values")
        counts = (ids == self.image_id).sum(dim=1).tolist()
        if given is None:
            assert not any(counts)
            return [b""] * len(ids)
        if given.ndim == 5 and "pixel_attention_mask" not in kwargs:  # LLaVA's views, a picture a row
            parts = [picture[: int(picture.flatten(1).any(1).nonzero().max()) + 1] for picture in given]
        elif "pixel_attention_mask" in kwargs:  # a row of tiles a prompt
            there = kwargs["pixel_attention_mask"].flatten(2).any(2)
            parts = [row[mask] for row, mask in zip(given, there, strict=True)]
        elif "image_sizes" in kwargs:  # padded pictures, 28 x 28 pixels a token
            pictures = [one[:, :tall, :wide] for one, (tall, wide) in zip(given, kwargs["image_sizes"], strict=True)]
            parts = []
            for count in counts:
                mine: list[torch.Tensor] = []
                while sum(one.numel() for one in mine) < count * 28 * 28 * 3:
                    mine.append(pictures.pop(0))
                parts.append(torch.cat([one.flatten() for one in mine]) if mine else given[:0])
        else:  # tiles or patches, the same number of tokens each
            parts = list(given.split([count * len(given) // sum(counts) for count in counts]))
        return [part.float().cpu().numpy().tobytes() for part in parts]
