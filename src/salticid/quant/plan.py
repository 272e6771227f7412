"""What of a model is held in how many bits. The whole rule is in the two tables below.

`bits` is for what a word costs: the decoder layers. Everything else stays in eight bits, because it is small beside them and costs
more in quality than it saves: the word table, whose errors go straight into the choice of words, the connector and a transformer's
vision tower, whose many patches are multiplied by unpacked weights anyway. Routers, norms, biases, learned queries, positions and
convolutions are never quantised; matrices of the vision tower among them are rounded to bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from salticid.errors import ConfigurationError
from salticid.models import VisionLanguageModel
from salticid.models.moe.experts import Experts
from salticid.quant.int4 import GROUPS

# Bits of the parts, by the bits that the user asks for. "words": the embeddings and the output head.
PART_BITS: dict[int, dict[str, int]] = {
    8: {"decoder": 8, "words": 8, "connector": 8},
    4: {"decoder": 4, "words": 8, "connector": 8},
}
# Linear layers of the vision tower, by its kind; 16: as the rest of it.
TOWER_BITS: dict[str, int] = {"clip_vision_model": 8, "siglip_vision_model": 8, "blip_2_vision_model": 8, "efficientnet_lite": 16}
# Linear layers that stay as they are, wherever they stand: they are tiny, and what they decide is all or nothing.
KEPT = ("wg", "coefficient")
DEFAULT_GROUP = 64


@dataclass(frozen=True)
class Precision:
    """How a model is quantised; saved in its configuration.

    bits: of the decoder layers, 8 or 4. group: inputs that share a scale where there are 4 bits. words: bits of embeddings and
    output head. tower: bits of the vision tower's linear layers, 16 for none. scaled: the decoder's layers of 4 bits have input scales.
    """

    bits: int
    group: int = DEFAULT_GROUP
    words: int = 8
    tower: int = 16
    scaled: bool = False

    def __post_init__(self) -> None:
        known = {"bits": tuple(PART_BITS), "group": GROUPS, "words": (8, 4), "tower": (16, 8, 4)}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                found = (
                    f"weights in {self.bits} bits are not supported; use bits="
                    if name == "bits"
                    else f"{name}={getattr(self, name)!r}: use "
                )
                raise ConfigurationError(f"{found}{' or '.join(map(str, choices))}")
        if self.scaled and self.bits != 4:
            raise ConfigurationError(f"input scales are for 4 bits, not {self.bits}")

    @classmethod
    def for_model(
        cls,
        bits: int,
        tower_type: str,
        group: int = DEFAULT_GROUP,
        words: int | None = None,
        tower: int | None = None,
        scaled: bool = False,
    ) -> Precision:
        """The rule of this file for a model whose vision tower is of `tower_type`, where the caller does not decide otherwise."""
        if bits not in PART_BITS:
            return cls(bits)
        return cls(bits, group, words or PART_BITS[bits]["words"], tower or TOWER_BITS[tower_type], scaled)


@dataclass(frozen=True)
class Place:
    """A module that is replaced. `bits` are 8 or 4; `group` is None for 8. `kind`: "linear", "embedding" or "experts"."""

    name: str
    kind: str
    bits: int
    group: int | None = None
    scaled: bool = False


def make_plan(model: VisionLanguageModel, precision: Precision) -> list[Place]:
    """All modules that change, in the order in which they stand in the model; it may be on "meta".

    Raises:
        ConfigurationError: embeddings do more than look up and multiply, or are of a kind that is not known.
    """
    _check_embeddings(model)
    words = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    return [
        _place(name, module, _bits(name, precision, id(module) in words), precision)
        for name, module in model.named_modules()
        if _is_replaced(name, module, precision) or module is model.get_input_embeddings()
    ]


def _is_replaced(name: str, module: nn.Module, precision: Precision) -> bool:
    if name.startswith("vision_tower.") and precision.tower == 16:
        return False
    return isinstance(module, Experts) or (type(module) is nn.Linear and name.rpartition(".")[2] not in KEPT)


def _bits(name: str, precision: Precision, is_words: bool) -> int:
    if is_words:
        return precision.words
    if name.startswith("vision_tower."):
        return precision.tower
    return PART_BITS[precision.bits]["connector" if name.startswith(("connector.", "phrases.")) else "decoder"]


def _place(name: str, module: nn.Module, bits: int, precision: Precision) -> Place:
    widths = list(_widths(module))
    group = None if bits == 8 else _fitting_group(widths, precision.group)
    kind = "experts" if isinstance(module, Experts) else "linear" if isinstance(module, nn.Linear) else "embedding"
    scaled = precision.scaled and group is not None and name.startswith("language_model.model.layers.")
    return Place(name, kind, 8 if group is None else bits, group, scaled)


def _widths(module: nn.Module) -> Iterator[int]:
    if isinstance(module, Experts):
        yield from (module.get_parameter(name).shape[-1] for name in (module.up_name, "down_proj"))
    else:
        yield module.get_parameter("weight").shape[-1]


def _fitting_group(widths: list[int], group: int) -> int | None:
    """The largest group that divides the inputs, at most as asked for; None, and eight bits, where none does."""
    fitting = [size for size in GROUPS if size <= group and not any(width % size for width in widths)]
    return max(fitting, default=None)


def _check_embeddings(model: VisionLanguageModel) -> None:
    embeddings = model.get_input_embeddings()
    if type(embeddings) is not nn.Embedding and not hasattr(embeddings, "scalar_embed_scale"):
        raise ConfigurationError(
            f"embeddings of class {type(embeddings).__name__} cannot be quantised; use a language model with a plain table"
        )
