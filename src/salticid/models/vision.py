"""The eye: any supported vision tower behind one call, `(I, 3, H, W)` pixels to `(I, N, D)` features.

I images, N patches, D width.
"""

from __future__ import annotations

import math

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from salticid.errors import InputError
from salticid.models.configuration import VISION_TOWERS, VisionLanguageConfig

# BLIP-2's `ln_vision` keeps torch's default; transformers would give it the blocks' 1e-6.
LN_VISION_EPS = 1e-5
PHOTOS_AT_A_TIME = 16
# A channel that hardly ever says anything is not made loud.
LEAST_DEVIATION = 0.05
MEASURED_PHOTOS = 256
"""Photos whose features tell the mean and the deviation of all: what `standardize` is given wherever it is called."""


class VisionTower(nn.Module):
    """A tower of transformers (CLIP, SigLIP, EVA ViT-g of BLIP-2) or our EfficientNet-Lite, with layer selection.

    Reads `vision_layers`, `vision_keep_cls`, `vision_drop_first`, `vision_positions` and `vision_standardized` of `VisionLanguageConfig`.
    Features of EfficientNet-Lite stages that are finer than the last are folded into depth, so that all stages share the last one's grid.
    """

    feature_mean: torch.Tensor
    feature_deviation: torch.Tensor

    def __init__(self, config: VisionLanguageConfig):
        super().__init__()
        self.model = _build_tower(config.vision_config)
        self.layers = config.vision_layers
        self.grid = config.vision_grid
        self.size = config.vision_config.image_size
        self.drop_first = config.vision_drop_first or (VISION_TOWERS[config.vision_config.model_type] and not config.vision_keep_cls)
        self.adds_places = config.vision_positions
        self.standardized = config.vision_standardized
        if self.standardized:
            width = config.vision_width
            self.register_buffer("feature_mean", torch.zeros(width))
            self.register_buffer("feature_deviation", torch.ones(width))
        self.reads_stages = config.vision_config.model_type == "efficientnet_lite"

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values (I, 3, H, W) -> features (I, N, D).

        Raises:
            InputError: the photos are of another size than the tower's.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[-2:] != (self.size, self.size):
            raise InputError(
                f"pixel_values have the shape {tuple(pixel_values.shape)} but the vision tower reads "
                f"(photos, 3, {self.size}, {self.size}); use the model's own processor"
            )
        pixel_values = pixel_values.to(self.model.dtype)
        features_IND = self._read_stages(pixel_values) if self.reads_stages else self._read_hidden_states(pixel_values)
        if self.standardized:
            features_IND = (features_IND - self.feature_mean.to(features_IND)) / self.feature_deviation.to(features_IND)
        return features_IND + places(self.grid, features_IND.shape[-1]).to(features_IND) if self.adds_places else features_IND

    @torch.no_grad()
    def standardize(self, pixel_values: torch.Tensor) -> None:
        """Measure what each channel's features are on average, and how far they lie apart, in these photos (I, 3, H, W).

        Raises:
            InputError: see `forward`.
        """
        self.feature_mean.zero_()
        self.feature_deviation.fill_(1.0)
        adds_places, self.adds_places = self.adds_places, False
        features_IND = torch.cat([self(batch).float() for batch in pixel_values.split(PHOTOS_AT_A_TIME)])
        self.adds_places = adds_places
        self.feature_mean.copy_(features_IND.mean(dim=(0, 1)))
        self.feature_deviation.copy_(features_IND.std(dim=(0, 1)).clamp_(min=LEAST_DEVIATION))

    def train(self, mode: bool = True) -> VisionTower:
        """Batch norms always use the statistics that they were pretrained with: a batch of a few photos has none worth using."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def _read_hidden_states(self, pixel_values: torch.Tensor) -> torch.Tensor:
        outputs = self.model(pixel_values, output_hidden_states=self.layers is not None)
        if self.layers is None:
            features_IND = outputs.last_hidden_state
        else:
            features_IND = torch.cat([outputs.hidden_states[layer] for layer in self.layers], dim=-1)
        return features_IND[:, 1:] if self.drop_first else features_IND

    def _read_stages(self, pixel_values: torch.Tensor) -> torch.Tensor:
        outputs = self.model(pixel_values.contiguous(memory_format=torch.channels_last))  # twice as fast on a CPU
        maps = [outputs.head if layer == -1 else outputs.stages[layer] for layer in self.layers or [-1]]
        return torch.cat([self._to_grid(features_IDhw) for features_IDhw in maps], dim=1).flatten(2).transpose(1, 2)

    def _to_grid(self, features_IDhw: torch.Tensor) -> torch.Tensor:
        """Fold neighbours of a finer map into depth; an odd size is padded at the end, as the tower's own strides do."""
        factor = -(-features_IDhw.shape[-1] // self.grid)
        if factor == 1:
            return features_IDhw
        missing = self.grid * factor - features_IDhw.shape[-1]
        return F.pixel_unshuffle(F.pad(features_IDhw, (0, missing, 0, missing)), factor)


def places(grid: int, width: int) -> torch.Tensor:
    """Where each patch of a square grid lies, as sines and cosines: (grid * grid, width), row by row.

    One half of the channels tells the row and the other the column, with waves from four sides of the photo long down to a quarter of one.
    A place is a share of the photo's side, so it has the same code, whatever the size of the grid.
    """
    waves = -(-width // 4)
    centres_G = (torch.arange(grid) + 0.5) / grid
    angles_GW = centres_G.unsqueeze(1) * 2 * math.pi * torch.logspace(-2, 2, waves, base=2.0)
    side_GC = torch.cat([angles_GW.sin(), angles_GW.cos()], dim=1)
    rows, columns = side_GC.repeat_interleave(grid, dim=0), side_GC.repeat(grid, 1)
    return torch.cat([rows, columns], dim=1)[:, :width]


def _build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    dtype = torch.get_default_dtype()  # of the whole model, not one that the part was once saved in
    if config.model_type == "blip_2_vision_model":  # the one tower that AutoModel does not know
        tower = transformers.Blip2VisionModel._from_config(config, dtype=dtype)
        tower.post_layernorm.eps = LN_VISION_EPS
        return tower
    return AutoModel.from_config(config, dtype=dtype)
