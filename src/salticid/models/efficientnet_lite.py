"""EfficientNet-Lite: a convolutional image encoder for small devices.

Source: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (arXiv:1905.11946, table 1) and the Lite edition in
tensorflow/tpu, models/official/efficientnet/lite/efficientnet_lite_builder.py. Lite drops squeeze-and-excite, uses ReLU6, and keeps
the stem, the head and the repeats of the first and last stage at one size for all variants.

Shape legend: B batch, C channels, H and W pixels, D the head's width (1280).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from salticid.errors import ConfigurationError

STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
CHANNEL_DIVISOR = 8
# The upstream's decay of 0.99 in PyTorch's convention.
NORM_MOMENTUM = 0.01


class Variant(NamedTuple):
    """Scaling of one published network: factors on channels and repeats, and the side of its training images in pixels."""

    width: float
    depth: float
    image_size: int


VARIANTS = {
    "lite0": Variant(1.0, 1.0, 224),
    "lite1": Variant(1.0, 1.1, 240),
    "lite2": Variant(1.1, 1.2, 260),
    "lite3": Variant(1.2, 1.4, 280),
    "lite4": Variant(1.4, 1.8, 300),
}


class Stage(NamedTuple):
    """A run of inverted bottlenecks; only the first of them strides and changes the channels."""

    repeats: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int


BASE_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


@strict
class EfficientNetLiteConfig(PreTrainedConfig):
    """Configuration of `EfficientNetLiteModel`.

    `width_coefficient`, `depth_coefficient` and `image_size` (pixels a side; the network itself takes any size) are those of `variant`
    unless given. Raises `ConfigurationError` for an unknown variant.
    """

    model_type = "efficientnet_lite"

    variant: str = "lite0"
    width_coefficient: float | int | None = None
    depth_coefficient: float | int | None = None
    image_size: int | None = None
    norm_eps: float = 1e-3
    classes: int = 1000

    def __post_init__(self, **kwargs: Any) -> None:
        if self.variant not in VARIANTS:
            raise ConfigurationError(f"unknown EfficientNet-Lite variant {self.variant!r}; choose one of {', '.join(VARIANTS)}")
        variant = VARIANTS[self.variant]
        self.width_coefficient = variant.width if self.width_coefficient is None else self.width_coefficient
        self.depth_coefficient = variant.depth if self.depth_coefficient is None else self.depth_coefficient
        self.image_size = variant.image_size if self.image_size is None else self.image_size
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Channels of the head's feature map, the same in every variant."""
        return HEAD_CHANNELS

    @property
    def scaled_stages(self) -> tuple[Stage, ...]:
        """The seven stages with this network's channels and repeats (the first and last stage keep their repeats)."""
        assert self.width_coefficient is not None
        assert self.depth_coefficient is not None
        first, *middle, last = [stage._replace(channels=scale_channels(stage.channels, self.width_coefficient)) for stage in BASE_STAGES]
        return first, *(stage._replace(repeats=math.ceil(stage.repeats * self.depth_coefficient)) for stage in middle), last

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each of the seven stages' outputs."""
        return tuple(stage.channels for stage in self.scaled_stages)

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """Input pixels to one cell of each stage's output, along a side."""
        strides = [2]
        for stage in BASE_STAGES:
            strides.append(strides[-1] * stage.stride)
        return tuple(strides[1:])


def scale_channels(channels: int, width_coefficient: float) -> int:
    """Scaled channels, rounded to the nearest multiple of eight, but never down by more than a tenth."""
    scaled = channels * width_coefficient
    rounded = max(CHANNEL_DIVISOR, int(scaled + CHANNEL_DIVISOR / 2) // CHANNEL_DIVISOR * CHANNEL_DIVISOR)
    return rounded + CHANNEL_DIVISOR if rounded < 0.9 * scaled else rounded


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a side of `size` pixels so that a convolution gives ceil(size / stride) cells, as TensorFlow's "SAME"."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """Convolution without bias whose padding follows from the input's size: (B, C, H, W) to (B, C', ceil(H/s), ceil(W/s))."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel_size, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        top, bottom = same_padding(input.shape[-2], self.kernel_size[0], self.stride[0])
        left, right = same_padding(input.shape[-1], self.kernel_size[1], self.stride[1])
        if (top, left) == (bottom, right):
            # The convolution pads by itself: no padded copy of the input.
            return F.conv2d(input, self.weight, None, self.stride, (top, left), self.dilation, self.groups)
        return super().forward(F.pad(input, (left, right, top, bottom)))


class ConvNorm(nn.Module):
    """Convolution, batch norm and, unless `activate` is off, ReLU6."""

    def __init__(self, conv: SameConv2d, norm_eps: float, activate: bool = True) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels, eps=norm_eps, momentum=NORM_MOMENTUM)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu6(x) if self.activate else x


class InvertedBottleneck(nn.Module):
    """Widen, filter each channel by itself, narrow again (MobileNetV2, arXiv:1801.04381, section 3.4)."""

    def __init__(self, inputs: int, stage: Stage, stride: int, norm_eps: float) -> None:
        super().__init__()
        width = inputs * stage.expansion
        self.expand = ConvNorm(SameConv2d(inputs, width), norm_eps) if stage.expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(SameConv2d(width, width, stage.kernel_size, stride, groups=width), norm_eps)
        self.project = ConvNorm(SameConv2d(width, stage.channels), norm_eps, activate=False)
        self.residual = stride == 1 and inputs == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


@dataclass
class EfficientNetLiteOutput(ModelOutput):
    """Feature maps of one forward pass.

    `stages`: the seven stages' outputs, (B, C, ceil(H/s), ceil(W/s)) with C and s of `config.stage_channels` and `config.stage_strides`.
    `head`: (B, 1280, ceil(H/32), ceil(W/32)) after the head's convolution, batch norm and ReLU6; what the classifier pools.
    """

    stages: tuple[Tensor, ...] | None = None
    head: Tensor | None = None


class EfficientNetLiteModel(PreTrainedModel):
    """EfficientNet-Lite for images of any size, with its ImageNet classifier.

    The published weights expect RGB as (value - 127) / 128. Drop-connect and dropout, which only regularise training from nothing, are
    left out.
    """

    config_class = EfficientNetLiteConfig
    config: EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = "image"
    _no_split_modules = ["InvertedBottleneck"]  # noqa: RUF012 (transformers reads a list)
    # It has no attention, so a larger model's choice of attention is never in its way.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = ConvNorm(SameConv2d(3, STEM_CHANNELS, kernel_size=3, stride=2), config.norm_eps)
        blocks: list[nn.Module] = []
        self.stage_ends: list[int] = []
        channels = STEM_CHANNELS
        for stage in config.scaled_stages:
            for repeat in range(stage.repeats):
                blocks.append(InvertedBottleneck(channels, stage, stage.stride if repeat == 0 else 1, config.norm_eps))
                channels = stage.channels
            self.stage_ends.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(SameConv2d(channels, HEAD_CHANNELS), config.norm_eps)
        self.classifier = nn.Linear(HEAD_CHANNELS, config.classes)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            # Fresh running statistics rescale nothing: with one fixed deviation for all filters the signal would fade in evaluation mode.
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, pixel_values: Tensor) -> EfficientNetLiteOutput:
        """Feature maps of (B, 3, H, W) normalised pixels."""
        x = self.stem(pixel_values)
        stages = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.stage_ends:
                stages.append(x)
        return EfficientNetLiteOutput(stages=tuple(stages), head=self.head(x))

    def classify(self, pixel_values: Tensor) -> Tensor:
        """Logits (B, classes) of (B, 3, H, W) normalised pixels."""
        features_bdhw = self(pixel_values).head
        return self.classifier(features_bdhw.mean(dim=(2, 3)))
