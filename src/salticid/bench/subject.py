"""What is measured: a model that users have, or a published model's shape with random weights, so that nobody downloads to find out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from salticid.checkpoints.load import load_config
from salticid.engine.catalog import find_model
from salticid.engine.load import choose_dtype, load
from salticid.errors import InputError
from salticid.models import VisionLanguageConfig, VisionLanguageModel
from salticid.models.moe.layer import ExpertsLayer
from salticid.models.shapes import Shape
from salticid.quant import quantize_model

PRECISIONS = ("fp32", "bf16", "int8", "int4")
BITS = {"int8": 8, "int4": 4}
# Random weights repeat after so many numbers: a prime, so that no two rows of a matrix are equal.
PERIOD = 1_000_003


@dataclass(frozen=True)
class Subject:
    """One model to measure: a model (embedded, folder or Hub id), or a shape of `salticid.models.shapes`.

    Args:
        layers: of a shape, keep the first so many decoder layers.
        words: of a shape with small weights, bits of the word table and the output head; default, as `quantize` has them.

    Raises:
        InputError: not one of model and shape, or `layers` or `words` of a model that has weights.
    """

    model: str | None = None
    shape: str | None = None
    layers: int | None = None
    words: int | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.shape is None):
            raise InputError("give either a model or --shape; shapes are named in salticid.models.shapes, such as phi-2 and tinygpt-v")
        if self.layers is not None and self.shape is None:
            raise InputError("--layers shortens a --shape; a model with weights is measured whole")
        if self.words is not None and self.shape is None:
            raise InputError("--words is for a --shape; a model with weights is measured as it is")
        if self.words not in (None, 8, 4):
            raise InputError(f"words have 8 or 4 bits, not {self.words}")

    @property
    def name(self) -> str:
        short = "" if self.layers is None else f", {self.layers} layers"
        short += "" if self.words is None else f", words in {self.words} bits"
        return f"{self.shape} (random weights{short})" if self.shape else str(self.model)

    def config(self) -> VisionLanguageConfig:
        """The configuration alone; no weights are read."""
        if self.shape is None:
            return load_config(find_model(str(self.model)))
        shape = Shape.named(self.shape)
        return (shape if self.layers is None else shape.with_layers(self.layers)).config()

    def build(self, precision: str) -> VisionLanguageModel:
        """The model in that precision, on the processor, in evaluation mode; the same weights each time."""
        check_precision(precision)
        if self.shape is None:
            return load(str(self.model), precision, "cpu").model
        return quantized(random_model(self.config(), compute_dtype(precision)), precision, self.words)

    def build_plain(self, precision: str) -> VisionLanguageModel:
        """The same weights for peers: float32 beside float32, and bfloat16 beside everything else."""
        return self.build("fp32" if precision == "fp32" else "bf16")


def check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")


def compute_dtype(precision: str) -> torch.dtype:
    """What the engine computes in on a processor, at that precision of the weights."""
    return choose_dtype(precision, torch.device("cpu"), small=precision in BITS)


def quantized(model: VisionLanguageModel, precision: str, words: int | None = None) -> VisionLanguageModel:
    """The model itself, its weights made small in place where the precision says so."""
    return quantize_model(model, bits=BITS[precision], words=words) if precision in BITS else model


def random_model(config: VisionLanguageConfig, dtype: torch.dtype) -> VisionLanguageModel:
    """A model whose matrices are small random numbers, the same each time; norms start as identities."""
    with _default_dtype(dtype), no_init_weights():
        model = VisionLanguageModel(config)
    numbers = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0)) * 0.02
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            _fill(parameter.data, numbers)
        else:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
    model.tie_weights()
    return model.eval()


def weights_read(model: VisionLanguageModel) -> int:
    """Bytes of weights that one decode step reads: the decoder and its head, of experts those that a token visits, of a table a row."""
    language = model.language_model
    head = {id(tensor) for tensor in _tensors(model.get_output_embeddings())}
    table = {id(tensor) for tensor in _tensors(model.get_input_embeddings())} - head
    visited = {id(tensor): share for tensor, share in _expert_tensors(language)}
    return sum(
        tensor.nbytes // tensor.shape[0] if id(tensor) in table else round(tensor.nbytes * visited.get(id(tensor), 1.0))
        for tensor in _tensors(language)
    )


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, each once."""
    yield from module.parameters()
    yield from module.buffers()


def _expert_tensors(language: nn.Module) -> Iterator[tuple[Tensor, float]]:
    """Stacked tensors of experts (E, ...), with the share of them that a token visits."""
    for layer in language.modules():
        if isinstance(layer, ExpertsLayer):
            count = int(layer.router.wg.out_features)
            for tensor in _tensors(layer.experts):
                if tensor.ndim and tensor.shape[0] == count:
                    yield tensor, layer.router.config.top_k / count


def _fill(tensor: Tensor, numbers: Tensor) -> None:
    for piece in tensor.view(-1).split(len(numbers)):
        piece.copy_(numbers[: len(piece)])


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
