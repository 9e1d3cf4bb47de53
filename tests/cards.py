"""Two cards on a machine without any: tensors stay where they are, and say which card they would be on.

What mixes cards fails, as CUDA would, and what moves a tensor only changes its label. The numbers are real.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_flatten, tree_map_only

CPU = torch.device("cpu")
_MOVES = ("to", "cuda", "cpu", "copy_", "type", "type_as")


class Cards(TorchFunctionMode):
    """While open, every torch function checks and sets labels. moves: how often a tensor went to another card."""

    def __init__(self) -> None:
        super().__init__()
        self.moves = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func == torch.Tensor.device.__get__:
            return card_of(args[0])
        name = func.__name__
        leaves, _ = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        asked = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        strings = [leaf for leaf in leaves if isinstance(leaf, str) and leaf.startswith(("cuda", "cpu"))]
        target = asked[0] if asked else torch.device(strings[0]) if strings else None
        cards = {card_of(tensor) for tensor in tensors if tensor.dim()}
        if name in ("__getitem__", "__setitem__"):  # an index may be on the CPU
            cards = {card_of(tensor) for tensor in tensors if card_of(tensor) != CPU} or cards
        if len(cards) > 1 and name not in _MOVES and name != "__get__":
            raise RuntimeError(f"{resolve_name(func)} got tensors on {sorted(map(str, cards))}")
        if target is None and name in ("to", "type_as") and len(tensors) > 1:
            target = card_of(tensors[1])
        args, kwargs = tree_map_only(torch.device, lambda _: CPU, (args, kwargs))
        args, kwargs = tree_map_only(str, lambda text: "cpu" if text.startswith("cuda") else text, (args, kwargs))
        result = func(*args, **kwargs)
        card = target or (card_of(tensors[0]) if name in _MOVES else next(iter(cards), None))
        if card is None:
            card = card_of(tensors[0]) if tensors else CPU
        if name in _MOVES and tensors and card_of(tensors[0]) != card and name != "copy_":
            self.moves += 1
            result = result.view_as(result) if result is tensors[0] else result
        if name != "copy_":
            tree_map_only(torch.Tensor, lambda tensor: put(tensor, card), result)
        return result


def card_of(tensor: torch.Tensor) -> torch.device:
    return vars(tensor).get("card", CPU)


def put(tensor: torch.Tensor, card: torch.device) -> torch.Tensor:
    vars(tensor)["card"] = card
    return tensor


class _Hook(AlignDevicesHook):
    """accelerate's own, but the weights are labelled, not moved."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        return module


def spread(model: nn.Module, device_map: dict[str, int]) -> None:
    """Label a model's weights by `device_map` and hook its modules as accelerate does."""
    skip = getattr(model, "_skip_keys_device_placement", None)
    add_hook_to_module(model, _Hook(execution_device=torch.device("cuda", 0), io_same_device=True, skip_keys=skip))
    for name, number in device_map.items():
        card, block = torch.device("cuda", number), model.get_submodule(name)
        for module in block.modules():
            add_hook_to_module(module, _Hook(execution_device=card, skip_keys=skip))
        for tensor in (*block.parameters(), *block.buffers()):
            put(tensor, card)
