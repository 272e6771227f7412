"""Upstream-shaped EfficientNet-Lite weights become ours, whole, or are refused with the keys at fault."""

from __future__ import annotations

import re

import pytest
import torch

from salticid.checkpoints.efficientnet_lite import EFFICIENTNET_LITE_KEYS, convert_efficientnet_lite
from salticid.errors import CheckpointError
from salticid.models.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel


def upstream_shapes(config: EfficientNetLiteConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the upstream package builds them, written out by its rules and not by our table."""

    def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
        vectors: dict[str, tuple[int, ...]] = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
        return vectors | {f"{name}.num_batches_tracked": ()}

    shapes: dict[str, tuple[int, ...]] = {"_conv_stem.weight": (32, 3, 3, 3), **norm("_bn0", 32)}
    channels, index = 32, 0
    for stage in config.scaled_stages:
        for _ in range(stage.repeats):
            block, width = f"_blocks.{index}", channels * stage.expansion
            if index > 0:
                shapes |= {f"{block}._expand_conv.weight": (width, channels, 1, 1), **norm(f"{block}._bn0", width)}
            shapes |= {f"{block}._depthwise_conv.weight": (width, 1, stage.kernel_size, stage.kernel_size), **norm(f"{block}._bn1", width)}
            shapes |= {f"{block}._project_conv.weight": (stage.channels, width, 1, 1), **norm(f"{block}._bn2", stage.channels)}
            channels, index = stage.channels, index + 1
    shapes |= {"_conv_head.weight": (1280, channels, 1, 1), **norm("_bn1", 1280)}
    return shapes | {"_fc.weight": (config.classes, 1280), "_fc.bias": (config.classes,)}


def upstream(config: EfficientNetLiteConfig, device: str = "meta") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if device == "meta":
        return {name: torch.empty(shape, device="meta") for name, shape in upstream_shapes(config).items()}
    return {name: torch.rand(shape, generator=generator) for name, shape in upstream_shapes(config).items()}


def tiny_config() -> EfficientNetLiteConfig:
    return EfficientNetLiteConfig(width_coefficient=0.25, depth_coefficient=0.5, classes=5)


@pytest.mark.parametrize("variant", ["lite0", "lite1", "lite2", "lite3", "lite4"])
def test_every_variant_converts_to_the_model_s_names_and_shapes(variant: str) -> None:
    config = EfficientNetLiteConfig(variant=variant)
    with torch.device("meta"):
        expected = EfficientNetLiteModel(config).state_dict()
    converted = convert_efficientnet_lite(upstream(config))
    assert {name: tensor.shape for name, tensor in converted.items()} == {name: tensor.shape for name, tensor in expected.items()}


def test_weights_land_in_their_places() -> None:
    source = upstream(tiny_config(), "cpu")
    model = EfficientNetLiteModel(tiny_config())
    model.load_state_dict(convert_efficientnet_lite(source), strict=True)
    for theirs, ours in {
        "_conv_stem.weight": model.stem.conv.weight,
        "_bn0.running_var": model.stem.norm.running_var,
        "_blocks.0._bn1.bias": model.blocks[0].depthwise.norm.bias,
        "_blocks.3._bn0.weight": model.blocks[3].expand.norm.weight,
        "_blocks.3._expand_conv.weight": model.blocks[3].expand.conv.weight,
        "_blocks.3._depthwise_conv.weight": model.blocks[3].depthwise.conv.weight,
        "_blocks.3._bn2.running_mean": model.blocks[3].project.norm.running_mean,
        "_blocks.3._project_conv.weight": model.blocks[3].project.conv.weight,
        "_bn1.bias": model.head.norm.bias,
        "_conv_head.weight": model.head.conv.weight,
        "_fc.bias": model.classifier.bias,
    }.items():
        assert torch.equal(source[theirs], ours), theirs


def test_each_key_matches_one_pattern_and_no_pattern_is_idle() -> None:
    used = [[pattern for pattern in EFFICIENTNET_LITE_KEYS if re.fullmatch(pattern, key)] for key in upstream_shapes(tiny_config())]
    assert {len(patterns) for patterns in used} == {1}
    assert {patterns[0] for patterns in used} == set(EFFICIENTNET_LITE_KEYS)


def test_unknown_and_missing_keys_are_all_listed() -> None:
    source = upstream(tiny_config())
    del source["_blocks.2._bn0.bias"], source["_fc.weight"]
    source |= {"_blocks.1._se_reduce.weight": torch.empty(1), "_bn0.gamma": torch.empty(1)}
    with pytest.raises(CheckpointError) as caught:
        convert_efficientnet_lite(source)
    assert "unknown keys: _blocks.1._se_reduce.weight, _bn0.gamma; missing keys: _blocks.2._bn0.bias, _fc.weight" in str(caught.value)


def test_blocks_cut_off_the_end_are_missed() -> None:
    source = {name: tensor for name, tensor in upstream(tiny_config()).items() if not name.startswith("_blocks.9.")}
    with pytest.raises(CheckpointError, match=r"missing keys: _blocks\.9 and after"):
        convert_efficientnet_lite(source)


def test_an_empty_checkpoint_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"_conv_stem\.weight"):
        convert_efficientnet_lite({})
