"""Matrix products of one input: by a kernel that `salticid.quant.kernels` chooses, or by the module itself.

M rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from salticid.engine.decoder.unplanned import Unplanned
from salticid.models import norms
from salticid.quant.kernels import SideBySide, can_fuse, fuse

Multiply = Callable[[Tensor], Tensor]

# Weights up to which layers of one input become one product. Calls are what small products cost, and one call is saved for each; of
# large ones nothing is gained, and joining would copy weights that are mapped from a file.
JOINED_WEIGHTS = 8_000_000


def read_products(layers: Sequence[nn.Module]) -> list[Multiply]:
    """(M, K) -> (M, N) for each of the layers, or one function that gives their outputs one after the other."""
    if len(layers) > 1 and all(_is_plain(layer) for layer in layers) and sum(map(_size, layers)) <= JOINED_WEIGHTS:
        return [fuse(layers)]
    return [fuse([layer]) if _is_plain(layer) else _call(layer) for layer in layers]


def read_joined(layers: Sequence[nn.Module]) -> Multiply:
    """(M, K) -> the outputs of the layers, one after the other."""
    products = read_products(layers)
    if len(products) == 1:
        return products[0]
    return SideBySide(products)


def read_product(layer: nn.Module) -> Multiply:
    return read_products([layer])[0]


def _is_plain(layer: nn.Module) -> bool:
    return can_fuse([layer])


def _call(layer: nn.Module) -> Multiply:
    """What the layer itself does: LoRA beside weights, for one. Hooks of our norms are passed by, for attention does what they do."""
    if any(has_unknown_hooks(module) or (module is not layer and module._forward_hooks) for module in layer.modules()):
        raise Unplanned(f"{type(layer).__name__} has hooks")
    call: Multiply = layer.forward
    return call


def has_unknown_hooks(module: nn.Module) -> bool:
    """Other hooks than those that `models.norms` registers: what they compute, the plan reads from the norms themselves."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(hook.__module__ != norms.__name__ for hook in hooks)


def _size(layer: Any) -> int:
    return int(layer.in_features * layer.out_features)
