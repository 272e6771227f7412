"""EfficientNet-Lite against published tables, TensorFlow's padding rule and the contracts of a transformers model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from salticid.errors import ConfigurationError
from salticid.models.efficientnet_lite import (
    VARIANTS,
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
    InvertedBottleneck,
    SameConv2d,
    Stage,
)


def tiny_model() -> EfficientNetLiteModel:
    torch.manual_seed(0)
    return EfficientNetLiteModel(EfficientNetLiteConfig(width_coefficient=0.25, depth_coefficient=0.5, classes=5)).eval()


def photo(height: int = 64, width: int = 64, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


# Channel tables and parameter counts (classifier included) of the TensorFlow release.
@pytest.mark.parametrize(
    ("variant", "parameters", "channels", "repeats", "image_size"),
    [
        ("lite0", 4_652_008, (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), 224),
        ("lite1", 5_416_680, (16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1), 240),
        ("lite2", 6_092_072, (16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1), 260),
        ("lite3", 8_197_096, (24, 32, 48, 96, 136, 232, 384), (1, 3, 3, 5, 5, 6, 1), 280),
        ("lite4", 13_006_568, (24, 32, 56, 112, 160, 272, 448), (1, 4, 4, 6, 6, 8, 1), 300),
    ],
)
def test_variants_match_published_tables(
    variant: str, parameters: int, channels: tuple[int, ...], repeats: tuple[int, ...], image_size: int
) -> None:
    config = EfficientNetLiteConfig(variant=variant)
    assert config.image_size == image_size
    assert config.stage_channels == channels
    assert tuple(stage.repeats for stage in config.scaled_stages) == repeats
    with torch.device("meta"):
        model = EfficientNetLiteModel(config).eval()
        output = model(torch.empty(2, 3, image_size, image_size))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    sides = [-(-image_size // stride) for stride in (2, 4, 8, 16, 16, 32, 32)]
    assert config.stage_strides == (2, 4, 8, 16, 16, 32, 32)
    assert [tuple(stage.shape) for stage in output.stages] == [(2, c, side, side) for c, side in zip(channels, sides, strict=True)]
    assert tuple(output.head.shape) == (2, config.hidden_size, sides[-1], sides[-1]) == (2, 1280, sides[-1], sides[-1])


def test_unknown_variant_lists_the_known() -> None:
    with pytest.raises(ConfigurationError, match=r"'lite9'.*lite0, lite1, lite2, lite3, lite4"):
        EfficientNetLiteConfig(variant="lite9")


def convolve_same(image: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's "SAME" for one channel, cell by cell: the window's excess over the image is split, the odd pixel to the far side."""
    size = kernel.shape[0]
    cells = [-(-side // stride) for side in image.shape]
    starts = [-(max((count - 1) * stride + size - side, 0) // 2) for count, side in zip(cells, image.shape, strict=True)]
    result = np.zeros(cells)
    for row, column in np.ndindex(*cells):
        for y, x in np.ndindex(size, size):
            source = (starts[0] + row * stride + y, starts[1] + column * stride + x)
            if 0 <= source[0] < image.shape[0] and 0 <= source[1] < image.shape[1]:
                result[row, column] += image[source] * kernel[y, x]
    return result


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (8, 7), (1, 2)])
def test_same_padding_follows_tensorflow(kernel_size: int, stride: int, size: tuple[int, int]) -> None:
    conv = SameConv2d(1, 1, kernel_size, stride)
    image = torch.randn(size, generator=torch.Generator().manual_seed(2))
    expected = convolve_same(image.numpy(), conv.weight[0, 0].detach().numpy(), stride)
    np.testing.assert_allclose(conv(image[None, None])[0, 0].detach().numpy(), expected, atol=1e-5)


def test_odd_sizes_round_up() -> None:
    output = tiny_model()(photo(33, 65))
    assert [tuple(stage.shape[2:]) for stage in output.stages] == [(17, 33), (9, 17), (5, 9), (3, 5), (3, 5), (2, 3), (2, 3)]


def test_layers_follow_the_lite_design() -> None:
    """One pass by hand: stem, the first two blocks, and the head, from the weights alone."""
    model = tiny_model().double()
    image = photo(32, 32).double()
    weights = model.state_dict()
    # Statistics that differ from the neutral start, so that the epsilon and their order count.
    generator = torch.Generator().manual_seed(3)
    for name, buffer in weights.items():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.02 + 0.005)

    def layer(x: torch.Tensor, name: str, stride: int = 1, active: bool = True) -> torch.Tensor:
        kernel = weights[f"{name}.conv.weight"]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + kernel.shape[-1] - x.shape[-1], 0)
        x = torch.nn.functional.pad(x, (total // 2, total - total // 2) * 2)
        x = torch.nn.functional.conv2d(x, kernel, stride=stride, groups=x.shape[1] // kernel.shape[1])
        mean, var, gain, bias = (
            weights[f"{name}.norm.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (var + 1e-3).sqrt() * gain + bias
        return x.clamp(0, 6) if active else x

    with torch.no_grad():
        output = model(image)
        first = layer(layer(layer(image, "stem", 2), "blocks.0.depthwise"), "blocks.0.project", active=False)
        # Channels stay at eight, but the stride leaves no residual.
        inner = layer(layer(first, "blocks.1.expand"), "blocks.1.depthwise", 2)
        second = layer(inner, "blocks.1.project", active=False)
        head = layer(output.stages[-1], "head")
        logits = head.mean((2, 3)) @ weights["classifier.weight"].T + weights["classifier.bias"]
        classified = model.classify(image)
    torch.testing.assert_close(output.stages[0], first)
    torch.testing.assert_close(output.stages[1], second)
    torch.testing.assert_close(output.head, head)
    torch.testing.assert_close(classified, logits)


def test_residual_only_where_shape_stays() -> None:
    with torch.device("meta"):
        model = EfficientNetLiteModel(EfficientNetLiteConfig(variant="lite0"))
    # The first block of each stage has none; lite0's stages start at these indices.
    assert [index for index, block in enumerate(model.blocks) if not block.residual] == [0, 1, 3, 5, 8, 11, 15]


@pytest.mark.parametrize(("stride", "channels", "expected"), [(1, 8, 1.0), (1, 16, 0.0), (2, 8, 0.0)])
def test_residual_adds_the_input(stride: int, channels: int, expected: float) -> None:
    block = InvertedBottleneck(8, Stage(1, 3, stride, 6, channels), stride, norm_eps=1e-3).eval()
    torch.nn.init.zeros_(block.project.norm.weight)
    assert (block(torch.ones(1, 8, 4, 4)) == expected).all()


def test_saves_and_loads_with_statistics(tmp_path: Path) -> None:
    model = tiny_model().train()
    model(photo(batch=2))
    model.eval().save_pretrained(tmp_path)
    again = EfficientNetLiteModel.from_pretrained(tmp_path).eval()
    assert again.config.width_coefficient == 0.25
    assert again.stem.norm.num_batches_tracked == 1
    torch.testing.assert_close(again.state_dict(), model.state_dict(), atol=0, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(again.classify(photo()), model.classify(photo()))


def test_random_start_keeps_the_signal() -> None:
    """In evaluation mode, where untrained batch norm rescales nothing."""
    output = tiny_model()(photo(batch=2))
    assert all(0.05 < stage.std() < 20 for stage in output.stages)
    assert 0.05 < output.head.std() < 6


def test_gradients_reach_every_parameter() -> None:
    model = tiny_model().train()
    model.classify(photo(batch=2)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.isfinite().all()] == []
    assert model.stem.conv.weight.grad.abs().max() > 0


def test_bfloat16_and_channels_last() -> None:
    model = tiny_model()
    with torch.no_grad():
        expected = model(photo())
        last = model.to(memory_format=torch.channels_last)(photo().contiguous(memory_format=torch.channels_last))
        half = model.to(torch.bfloat16)(photo().bfloat16())
    assert last.head.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.head, expected.head, atol=1e-4, rtol=1e-4)
    assert half.head.dtype == torch.bfloat16
    cosine = torch.nn.functional.cosine_similarity(half.head.float().flatten(), expected.head.flatten(), dim=0)
    assert cosine > 0.99


def test_explicit_coefficients_override_the_variant() -> None:
    config = EfficientNetLiteConfig(variant="lite4", width_coefficient=VARIANTS["lite0"].width, image_size=64)
    assert config.stage_channels == EfficientNetLiteConfig(variant="lite0").stage_channels
    assert config.scaled_stages[3].repeats == 6
    assert config.image_size == 64
