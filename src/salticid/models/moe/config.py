"""What a mixture-of-experts language model looks like: saved inside the model's configuration, checked when built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from salticid.errors import ConfigurationError

# Indices of the layers that get experts, of a language model with so many layers. "alternate" is what MoE-LLaVA calls "sparse".
LAYER_CHOICES: dict[str, Callable[[int], range]] = {
    "alternate": lambda layers: range(0, layers, 2),
    "first-half": lambda layers: range(layers // 2),
    "second-half": lambda layers: range(layers // 2, layers),
    "all": lambda layers: range(layers),
}
ROUTINGS = ("dropless", "deepspeed")
NOISES = ("none", "gumbel")


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Which layers hold experts, how many, and how tokens are sent to them. The defaults of sizes are MoE-LLaVA's (arXiv 2401.15947).

    Raises ConfigurationError when an option is unknown, of a wrong type, out of range, or contradicts another one.
    """

    experts: int | tuple[int, ...] = 4  # one number for all expert layers, or one per expert layer in ascending layer order
    top_k: int = 2  # experts per token
    layers: str | tuple[int, ...] = "alternate"  # a key of LAYER_CHOICES, or ascending layer indices

    # "dropless": every token reaches its top_k experts; deterministic.
    # "deepspeed": the capacity, drops and weights of DeepSpeed 0.9.5, for checkpoints that were trained with it; top_k 1 or 2.
    routing: str = "dropless"
    normalise: bool = True  # dropless only: weights renormalised over the chosen experts; DeepSpeed does so for top_k 2, never for 1

    # DeepSpeed's rule only.
    capacity_factor: float = 1.5  # room per expert in training: ceil(tokens / experts * top_k * factor)
    eval_capacity_factor: float = 2.0  # the same in evaluation
    min_capacity: int = 0  # room per expert is never under this
    second_choice_noise: str = "none"  # "gumbel" draws the second expert at random, in training and in evaluation, as upstream does
    random_token_selection: bool = True  # top_k 1: tokens of a full expert are dropped at random

    # At most one of these two: a dense FFN beside the routed experts, for every token.
    residual: bool = False  # blended with a learned softmax over the two (DeepSpeed-MoE, arXiv 2201.05596, section 4.1)
    shared_expert: bool = False  # added to the routed output (DeepSeekMoE, arXiv 2401.06066, section 3.2)

    aux_loss_coef: float = 0.01  # of the load-balancing loss, summed over expert layers
    z_loss_coef: float = 0.0  # of the router z-loss (ST-MoE, arXiv 2202.08906, equation 5), summed over expert layers

    def __post_init__(self) -> None:
        for name in ("experts", "layers"):
            if isinstance(getattr(self, name), list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_types()
        self._check_numbers()
        self._check_layers()
        self._check_rules()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExpertsConfig:
        """The inverse of `to_dict`; an unknown key raises ConfigurationError."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ConfigurationError(f"Unknown expert options {unknown}; known are {known}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def experts_per_layer(self, layers: int) -> dict[int, int]:
        """`{layer index: number of experts}` for a language model with `layers` decoder layers, ascending."""
        if isinstance(self.layers, str):
            chosen = tuple(LAYER_CHOICES[self.layers](layers))
        else:
            chosen = self.layers
        if not chosen:
            raise ConfigurationError(f"Layers {self.layers!r} choose none of {layers} layers; name at least one.")
        if chosen[-1] >= layers:
            raise ConfigurationError(f"Layer {chosen[-1]} cannot get experts: the language model has layers 0 to {layers - 1}.")
        if isinstance(self.experts, int):
            return dict.fromkeys(chosen, self.experts)
        if len(self.experts) != len(chosen):
            raise ConfigurationError(f"{len(self.experts)} numbers of experts for the layers {list(chosen)}; give one each.")
        return dict(zip(chosen, self.experts, strict=True))

    def _check_types(self) -> None:
        for name in ("normalise", "random_token_selection", "residual", "shared_expert"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"Expert option {name} must be true or false, not {getattr(self, name)!r}.")
        for name in ("top_k", "min_capacity"):
            if not _is_int(getattr(self, name)):
                raise ConfigurationError(f"Expert option {name} must be a whole number, not {getattr(self, name)!r}.")
        for name in ("capacity_factor", "eval_capacity_factor", "aux_loss_coef", "z_loss_coef"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigurationError(f"Expert option {name} must be a number, not {value!r}.")
        for name, known in (("routing", ROUTINGS), ("second_choice_noise", NOISES)):
            if getattr(self, name) not in known:
                raise ConfigurationError(f"Unknown {name} {getattr(self, name)!r}; known are {list(known)}.")

    def _check_numbers(self) -> None:
        counts = self.experts if isinstance(self.experts, tuple) else (self.experts,)
        if not counts or not all(_is_int(count) and count >= 1 for count in counts):
            raise ConfigurationError(f"experts must be a positive number or a list of them, one per expert layer, not {self.experts!r}.")
        if not 1 <= self.top_k <= min(counts):
            raise ConfigurationError(f"top_k {self.top_k} must lie between 1 and the number of experts, {min(counts)}.")
        if self.capacity_factor <= 0 or self.eval_capacity_factor <= 0 or self.min_capacity < 0:
            raise ConfigurationError("capacity_factor and eval_capacity_factor must be above 0, min_capacity at least 0.")
        if self.aux_loss_coef < 0 or self.z_loss_coef < 0:
            raise ConfigurationError("aux_loss_coef and z_loss_coef must be at least 0.")

    def _check_layers(self) -> None:
        if isinstance(self.layers, str):
            if self.layers not in LAYER_CHOICES:
                raise ConfigurationError(f"Unknown layers {self.layers!r}; known are {list(LAYER_CHOICES)} or a list of indices.")
        elif not isinstance(self.layers, tuple) or not all(_is_int(index) and index >= 0 for index in self.layers):
            raise ConfigurationError(f"layers must be one of {list(LAYER_CHOICES)} or a list of indices, not {self.layers!r}.")
        elif sorted(set(self.layers)) != list(self.layers):
            raise ConfigurationError(f"Layer indices {list(self.layers)} must be ascending and differ from one another.")

    def _check_rules(self) -> None:
        if self.routing == "deepspeed" and self.top_k > 2:
            raise ConfigurationError(f"DeepSpeed's routing knows top_k 1 and 2, not {self.top_k}; use routing 'dropless'.")
        if self.routing == "deepspeed" and not self.normalise:
            raise ConfigurationError("DeepSpeed's routing fixes the normalisation; leave normalise true or use routing 'dropless'.")
        if self.second_choice_noise != "none" and (self.routing, self.top_k) != ("deepspeed", 2):
            raise ConfigurationError("second_choice_noise needs routing 'deepspeed' with top_k 2; set it to 'none'.")
        if self.residual and self.shared_expert:
            raise ConfigurationError("residual and shared_expert both put a dense FFN beside the experts; choose one.")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
