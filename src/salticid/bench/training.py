"""What a training stage takes at full size, from the configuration: weights, gradients, optimizer, and what is kept for the backward pass.

The last is counted, not guessed: one layer at full width runs on a few tokens, frozen and trained as the stage says, and whatever autograd
keeps is added up. It grows with tokens in proportion, for attention is fused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from salticid.bench.memory import meta_model
from salticid.bench.one_layer import one_layer_model
from salticid.errors import InputError
from salticid.models import VisionLanguageConfig, VisionLanguageModel
from salticid.models.moe.layer import ExpertsLayer, collect_routing

PROBED_TOKENS = 64
# Gradients and AdamW's two averages are float32, whatever the rest is.
GRADIENT, OPTIMIZER, COMPUTE = 4, 8, 2


@dataclass(frozen=True)
class Stage:
    """What learns in a stage, and on what.

    learns: as in a recipe, parts, with regular expressions of the parameters in them that learn, or `None` for all. lora: of names of the
    language model's linear layers that get LoRA of that `rank`.
    tokens: of one example, image tokens included. answer: those with a label, which the output head is run on.
    """

    name: str
    learns: Mapping[str, Sequence[str] | None]
    tokens: int
    answer: int
    lora: tuple[str, ...] = ()
    rank: int = 64


NORMS = (r"\.input_layernorm\.weight$", r"self_attn\.(q|k|output)_layernorm\.weight$")
ATTENTION = (r"self_attn\.[qkv]_proj$", r"self_attn\.dense$")
# Sources: TinyGPT-V's train_configs/*.yaml and the parameters that its code lets learn; MoE-LLaVA's scripts/v1_5/phi2/*.sh. Tokens are the
# most that upstream allows, and where it sets no limit those of a long caption.
TINYGPT_V = (
    Stage("1 and 2, captions", {"connector": (r"^layers\.",), "language_model": NORMS}, tokens=96, answer=64, lora=ATTENTION),
    Stage("3, descriptions", {"connector": (r"^layers\.",), "language_model": NORMS}, tokens=192, answer=160, lora=ATTENTION),
    Stage("4, tasks", {"connector": None, "language_model": NORMS}, tokens=1056, answer=256, lora=ATTENTION),
)
MOE_LLAVA = (
    Stage("1, connector", {"connector": None}, tokens=704, answer=128),
    Stage("2, instructions", {"connector": None, "language_model": None}, tokens=2048, answer=512),
)
EXPERTS = Stage("3, experts", {"language_model": (r"\.experts\.", r"\.router\.")}, tokens=2048, answer=512)
STAGES: dict[str, tuple[Stage, ...]] = {
    "tinygpt-v": TINYGPT_V,
    "phi-2": MOE_LLAVA,
    "moe-llava-phi2": (EXPERTS,),
    "moe-llava-stablelm": (EXPERTS,),
    "moe-llava-qwen": (EXPERTS,),
}


@dataclass(frozen=True)
class Training:
    """Bytes that a stage takes; `example` and `example_checkpointed` for each example of a batch, the rest once.

    weights: frozen ones in bfloat16, learning ones in float32. copies: bfloat16 ones of what learns, made for each step.
    """

    stage: str
    learning: int
    weights: int
    gradients: int
    optimizer: int
    copies: int
    example: int
    example_checkpointed: int

    @property
    def fixed(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.copies

    def batch(self, memory: int, checkpointed: bool) -> int:
        """The largest batch that `memory` bytes hold; 0 where not one example fits."""
        return max(0, (memory - self.fixed) // max(1, self.example_checkpointed if checkpointed else self.example))


def training_memory(config: VisionLanguageConfig, stage: Stage) -> Training:
    """What one step of the stage takes on one device.

    Raises:
        InputError: a pattern that matches no parameter.
    """
    model = meta_model(config, torch.float32)
    learning = _mark(model, stage)
    outside = _head(config, stage) + _before(config, model)
    every = sum(parameter.numel() for parameter in model.parameters())
    own = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Training(
        stage=stage.name,
        learning=learning,
        weights=COMPUTE * (every - own) + 4 * learning,
        gradients=GRADIENT * learning,
        optimizer=OPTIMIZER * learning,
        copies=COMPUTE * learning,
        example=_layers(config, model, stage, checkpointed=False) + outside,
        example_checkpointed=_layers(config, model, stage, checkpointed=True) + outside,
    )


def _mark(model: VisionLanguageModel, stage: Stage) -> int:
    """Set `requires_grad` as the stage says; how many numbers learn, LoRA's included."""
    model.requires_grad_(False)
    for part, patterns in stage.learns.items():
        for pattern in ("",) if patterns is None else patterns:
            found = [parameter for name, parameter in getattr(model, part).named_parameters() if re.search(pattern, name)]
            if not found:
                raise InputError(f"{stage.name}: no parameter of the {part} matches {pattern!r}; see model.{part}.named_parameters()")
            for parameter in found:
                parameter.requires_grad_(True)
    linears = [module for name, module in model.language_model.named_modules() if isinstance(module, nn.Linear) and _has_lora(stage, name)]
    own = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return own + sum(stage.rank * (linear.in_features + linear.out_features) for linear in linears)


def _head(config: VisionLanguageConfig, stage: Stage) -> int:
    """Logits in bfloat16, in float32, and their gradient: the output head runs on labelled tokens alone."""
    return stage.answer * config.text_config.vocab_size * (COMPUTE + 4 + 4)


def _layers(config: VisionLanguageConfig, model: VisionLanguageModel, stage: Stage, checkpointed: bool) -> int:
    """What all decoder layers keep of one example; checkpointed, their inputs and the whole of the largest layer."""
    kinds = _layer_kinds(model, stage)
    costs = {kind: saved_per_token(config, *kind) for kind in set(kinds)}
    every = [costs[kind] for kind in kinds]
    if checkpointed:
        return stage.tokens * (len(kinds) * config.text_config.hidden_size * COMPUTE + max(every))
    return stage.tokens * sum(every)


def _layer_kinds(model: VisionLanguageModel, stage: Stage) -> list[tuple[bool, frozenset[str]]]:
    """Per layer: has it experts, and which of its parameters keep their input for the backward pass."""
    decoder: Any = model.language_model.base_model
    kinds = []
    for layer in decoder.layers:
        adapted = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear) and _has_lora(stage, name)]
        learning = {name for name, parameter in layer.named_parameters() if parameter.requires_grad}
        kinds.append((isinstance(layer.mlp, ExpertsLayer), frozenset(learning | {f"{name}.weight" for name in adapted})))
    return kinds


def _has_lora(stage: Stage, name: str) -> bool:
    return any(re.search(pattern, name) for pattern in stage.lora)


def saved_per_token(config: VisionLanguageConfig, experts: bool, learning: frozenset[str]) -> int:
    """Bytes that autograd keeps of one decoder layer for each token, where the parameters of these names learn."""
    chosen = (config.experts or {}) | {"routing": "dropless", "second_choice_noise": "none"} if experts else None
    model = one_layer_model(config, chosen, torch.bfloat16).train()
    decoder: Any = model.language_model.base_model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, parameter in decoder.layers[0].named_parameters():
        parameter.requires_grad_(name in learning)
    hidden = torch.zeros(1, PROBED_TOKENS, config.text_config.hidden_size, dtype=torch.bfloat16).normal_().requires_grad_()
    with counting_saved(model) as saved:
        decoder(inputs_embeds=hidden, use_cache=False)
    collect_routing(model)
    return sum(saved.values()) // PROBED_TOKENS


@contextmanager
def counting_saved(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd keeps inside the block, the model's own weights left out."""
    saved: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no address is used twice
    own = {_address(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        if _address(tensor) not in own:
            kept.append(tensor)
            saved[_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _address(tensor: Tensor) -> int:
    storage = tensor.untyped_storage()
    return storage._cdata if tensor.is_meta else storage.data_ptr()


def _before(config: VisionLanguageConfig, learning: VisionLanguageModel) -> int:
    """What tower and connector keep of one photo, as far as they learn; on shapes alone."""
    model = meta_model(config, torch.bfloat16).train()
    for parameter, marked in zip(model.parameters(), learning.parameters(), strict=True):
        parameter.requires_grad_(marked.requires_grad)
    side = config.vision_config.image_size
    with counting_saved(model) as saved:
        model.get_image_features(torch.empty(1, 3, side, side, dtype=torch.bfloat16, device="meta"))
    return sum(saved.values())
