"""Experts with small weights: as many feed-forward networks side by side as before, of which only the chosen ones are read.

E experts, S tokens, N tokens of one expert, D width, F ffn; T tiles, P rows filled up and G groups as `quant/int4.py` has them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from salticid.models.moe.experts import Experts, FeedForwardShape, activate, visit_experts
from salticid.quant import int4, int8


class SmallExperts(nn.Module):
    """Base of the two below, which take the place of `Experts` and are called alike.

    Parameters keep the names that `Experts` gives them; scales stand beside, as `up_proj_scale` for `up_proj`. None is trainable.
    """

    def __init__(self, experts: Experts):
        super().__init__()
        self.num_experts, self.act_fn, self.up_name = experts.num_experts, experts.act_fn, experts.up_name
        self.has_gate, self.has_bias = experts.has_gate, experts.has_bias
        self.rows = {name: experts.get_parameter(name).shape[1] for name in (self.up_name, "down_proj")}
        self.config: Any = experts.config
        for name in self.rows:
            for suffix, tensor in self._quantise(name, experts.get_parameter(name)).items():
                self.register_parameter(name + suffix, nn.Parameter(tensor, requires_grad=False))
            if self.has_bias:
                self.register_parameter(f"{name}_bias", nn.Parameter(experts.get_parameter(f"{name}_bias").detach(), requires_grad=False))

    def _quantise(self, name: str, weight_END: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def _multiply(self, name: str, expert: int, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _dequantise(self, name: str, expert: int) -> Tensor:
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Tokens (S, D), chosen experts and their weights (S, K) -> (S, D)."""
        return visit_experts(self.feed_forward, self.num_experts, hidden_states, top_k_index, top_k_weights)

    def feed_forward(self, expert: int, x_ND: Tensor) -> Tensor:
        """One expert for its tokens: (N, D) -> (N, D)."""
        up = self._multiply(self.up_name, expert, x_ND)
        return self._multiply("down_proj", expert, activate(up, self.act_fn, self.has_gate))

    def to_float(self, dtype: torch.dtype) -> Experts:
        """Plain experts in `dtype` with the rounded weights."""
        width, ffn = self.rows["down_proj"], self.rows[self.up_name] // (2 if self.has_gate else 1)
        shape = FeedForwardShape(width, ffn, self.has_gate, self.has_bias, self.act_fn)
        experts = Experts(self.config, shape, self.num_experts, torch.device("meta"), dtype)
        for name in self.rows:
            stacked = torch.stack([self._dequantise(name, expert).to(dtype) for expert in range(self.num_experts)])
            setattr(experts, name, nn.Parameter(stacked))
            if self.has_bias:
                setattr(experts, f"{name}_bias", nn.Parameter(self.get_parameter(f"{name}_bias").detach().to(dtype)))
        return experts

    def _bias(self, name: str, expert: int) -> Tensor | None:
        return self.get_parameter(f"{name}_bias")[expert] if self.has_bias else None


class Int8Experts(SmallExperts):
    """Weights int8 (E, 2F, D), (E, F, D) or (E, D, F), with `*_scale` (E, rows)."""

    @classmethod
    def from_float(cls, experts: Experts) -> Int8Experts:
        """With rounded weights, on the same device; on "meta" only shapes."""
        return cls(experts)

    def _quantise(self, name: str, weight_END: Tensor) -> dict[str, Tensor]:
        pairs = [int8.quantize_rows(weight) for weight in weight_END]
        return {suffix: torch.stack(tensors) for suffix, tensors in zip(("", "_scale"), zip(*pairs, strict=True), strict=True)}

    def _multiply(self, name: str, expert: int, x: Tensor) -> Tensor:
        weight, scale = self.get_parameter(name)[expert], self.get_parameter(f"{name}_scale")[expert]
        return int8.multiply(x, weight, scale, self._bias(name, expert))

    def _dequantise(self, name: str, expert: int) -> Tensor:
        return int8.dequantize(self.get_parameter(name)[expert], self.get_parameter(f"{name}_scale")[expert], torch.float32)


class Int4Experts(SmallExperts):
    """Weights uint8 (E, T, K, 32), with `*_scale_zero` (E, G, P, 2) and perhaps `*_input_scale` (E, K)."""

    def __init__(self, experts: Experts, group: int, scaled: bool = False):
        self.group, self.scaled = group, scaled
        super().__init__(experts)
        self._in_kernel_order: dict[tuple[str, int], tuple[int, Tensor]] = {}

    @classmethod
    def from_float(cls, experts: Experts, group: int, scaled: bool = False) -> Int4Experts:
        """With rounded weights, on the same device; on "meta" only shapes. `scaled`: with input scales of ones."""
        return cls(experts, group, scaled)

    def _quantise(self, name: str, weight_END: Tensor) -> dict[str, Tensor]:
        pairs = [int4.quantize_groups(weight, self.group) for weight in weight_END]
        stacked = {suffix: torch.stack(tensors) for suffix, tensors in zip(("", "_scale_zero"), zip(*pairs, strict=True), strict=True)}
        return stacked | ({"_input_scale": torch.ones_like(weight_END[:, 0])} if self.scaled else {})

    def _tensors(self, name: str, expert: int) -> tuple[Tensor, Tensor, int]:
        return self.get_parameter(name)[expert], self.get_parameter(f"{name}_scale_zero")[expert], self.rows[name]

    def _input_scale(self, name: str, expert: int) -> Tensor | None:
        return self.get_parameter(f"{name}_input_scale")[expert] if self.scaled else None

    def _multiply(self, name: str, expert: int, x: Tensor) -> Tensor:
        kernel_weight = partial(self.kernel_weight, name, expert)
        return int4.multiply(x, *self._tensors(name, expert), self._bias(name, expert), self._input_scale(name, expert), kernel_weight)

    def kernel_weight(self, name: str, expert: int) -> Tensor:
        """The expert's weight in this processor's own order, made once, for experts that were chosen alone."""
        weight = self.get_parameter(name)[expert]
        made = self._in_kernel_order.get((name, expert))
        if made is None or made[0] != weight.data_ptr():
            made = (weight.data_ptr(), int4.in_kernel_order(int4.unpack(weight)))
            self._in_kernel_order[name, expert] = made
        return made[1]

    def _dequantise(self, name: str, expert: int) -> Tensor:
        weight, scale_zero, rows = self._tensors(name, expert)
        plain, input_scale = int4.dequantize(weight, scale_zero, torch.float32)[:rows], self._input_scale(name, expert)
        return plain if input_scale is None else plain * input_scale.float()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_in_kernel_order": {}}
