"""LoRA beside experts, whose weights have three dimensions: one pair of low-rank factors for every expert.

E experts, F output features, D input features, R rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from salticid.errors import ConfigurationError
from salticid.models.moe.experts import Experts

MATRICES = ("gate_up_proj", "up_proj", "down_proj")


class ExpertFactors(nn.Module):
    """A parametrisation: W (E, F, D) to W + alpha / rank * B A, for each expert (LoRA, arXiv 2106.09685, section 4.1)."""

    def __init__(self, weight: Tensor, rank: int, alpha: float):
        super().__init__()
        experts, rows, columns = weight.shape
        options: dict = {"dtype": torch.float32, "device": weight.device}
        self.lora_A = nn.Parameter(torch.empty(experts, rank, columns, **options))
        self.lora_B = nn.Parameter(torch.zeros(experts, rows, rank, **options))
        self.scale = alpha / rank
        bound = 1 / math.sqrt(columns)  # as a linear layer starts, for each expert
        nn.init.uniform_(self.lora_A, -bound, bound)

    def forward(self, weight_EFD: Tensor) -> Tensor:
        update_EFD = self.scale * torch.bmm(self.lora_B, self.lora_A)
        return weight_EFD + update_EFD.to(weight_EFD.dtype)


def add_expert_factors(model: nn.Module, rank: int, alpha: float) -> None:
    """Put factors beside every expert's matrices; the model computes what it did before.

    Raises:
        ConfigurationError: the model has no experts.
    """
    layers = [module for module in model.modules() if isinstance(module, Experts)]
    if not layers:
        raise ConfigurationError("lora.experts is set but the model has no experts; start from a sparse model, or add `experts`")
    for layer in layers:
        for name in [name for name in MATRICES if hasattr(layer, name)]:
            parametrize.register_parametrization(layer, name, ExpertFactors(getattr(layer, name), rank, alpha))


def merge_expert_factors(model: nn.Module) -> None:
    """Add the factors to the weights, in place, and leave plain parameters; nothing where there are none."""
    for layer in [module for module in model.modules() if isinstance(module, Experts)]:
        for name in MATRICES:
            if parametrize.is_parametrized(layer, name):
                parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
