"""Published EfficientNet-Lite weights (PyTorch ports of the TensorFlow release, as in the package efficientnet-lite-pytorch)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from salticid.errors import CheckpointError

_CONV = ("weight",)
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_BN = f"({'|'.join(_NORM)})"

# Upstream pattern, matched in full, to our name. Nothing maps to None: every upstream tensor, batch norm's counters too, has a place here.
EFFICIENTNET_LITE_KEYS: Mapping[str, str] = {
    r"_conv_stem\.(weight)": r"stem.conv.\1",
    rf"_bn0\.{_BN}": r"stem.norm.\1",
    r"_blocks\.(\d+)\._expand_conv\.(weight)": r"blocks.\1.expand.conv.\2",
    rf"_blocks\.(\d+)\._bn0\.{_BN}": r"blocks.\1.expand.norm.\2",
    r"_blocks\.(\d+)\._depthwise_conv\.(weight)": r"blocks.\1.depthwise.conv.\2",
    rf"_blocks\.(\d+)\._bn1\.{_BN}": r"blocks.\1.depthwise.norm.\2",
    r"_blocks\.(\d+)\._project_conv\.(weight)": r"blocks.\1.project.conv.\2",
    rf"_blocks\.(\d+)\._bn2\.{_BN}": r"blocks.\1.project.norm.\2",
    r"_conv_head\.(weight)": r"head.conv.\1",
    rf"_bn1\.{_BN}": r"head.norm.\1",
    r"_fc\.(weight|bias)": r"classifier.\1",
}

_ENDS = {"_conv_stem": _CONV, "_bn0": _NORM, "_conv_head": _CONV, "_bn1": _NORM, "_fc": ("weight", "bias")}
_BLOCK = {"_depthwise_conv": _CONV, "_bn1": _NORM, "_project_conv": _CONV, "_bn2": _NORM}
_EXPANSION = {"_expand_conv": _CONV, "_bn0": _NORM}


def convert_efficientnet_lite(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Upstream weights under the names of `EfficientNetLiteModel`; tensors are shared, not copied.

    Raises `CheckpointError` that lists every key that the table does not know and every key that a whole network would have. Whole
    blocks cut off the end show by the head, whose input channels then differ from the last block's output.
    """
    names = {key: _rename(key) for key in state_dict}
    blocks = 1 + max((int(match[1]) for key in names if (match := re.match(r"_blocks\.(\d+)\.", key))), default=0)
    unknown = sorted(key for key, name in names.items() if name is None)
    missing = sorted(_expected_keys(blocks) - names.keys())
    last_conv = f"_blocks.{blocks - 1}._project_conv.weight"
    if not missing and state_dict[last_conv].shape[0] != state_dict["_conv_head.weight"].shape[1]:
        missing = [f"_blocks.{blocks} and after"]
    if unknown or missing:
        found = "; ".join(f"{what} keys: {', '.join(keys)}" for what, keys in (("unknown", unknown), ("missing", missing)) if keys)
        raise CheckpointError(f"not a whole EfficientNet-Lite checkpoint; download one of lite0 to lite4 again ({found})")
    return {name: state_dict[key] for key, name in names.items() if name is not None}


def _rename(key: str) -> str | None:
    for pattern, name in EFFICIENTNET_LITE_KEYS.items():
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    return None


def _expected_keys(blocks: int) -> set[str]:
    parts = dict(_ENDS)
    for index in range(blocks):
        # The first block has an expansion ratio of one, thus no expansion.
        block = _BLOCK | _EXPANSION if index else _BLOCK
        parts |= {f"_blocks.{index}.{part}": names for part, names in block.items()}
    return {f"{part}.{name}" for part, names in parts.items() for name in names}
