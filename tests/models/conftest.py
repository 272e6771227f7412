"""Tiny random models of every mixture of parts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from salticid.models import VisionLanguageConfig, VisionLanguageModel

VOCABULARY = 64
IMAGE_ID = 63

_VIT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
_DECODER: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "vocab_size": VOCABULARY,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_GROUPED = {"num_key_value_heads": 1, "head_dim": 8}

TOWERS: dict[str, dict[str, Any]] = {
    "clip": {"model_type": "clip_vision_model", **_VIT},
    "siglip": {"model_type": "siglip_vision_model", **_VIT},
    "eva": {"model_type": "blip_2_vision_model", **_VIT, "qkv_bias": True},
    "efficientnet": {
        "model_type": "efficientnet_lite",
        "width_coefficient": 0.1,
        "depth_coefficient": 0.3,
        "image_size": 64,
        "classes": 5,
    },
}
CONNECTORS: dict[str, dict[str, Any]] = {
    "linear": {"depth": 1},
    "mlp2x_gelu": {"depth": 2, "activation": "gelu"},
    "shuffle": {"shuffle": 2, "norm": True},
    "pool": {"pool": 2, "depth": 1},
    "qformer": {"kind": "qformer", "queries": 3, "depth": 2, "hidden_size": 20, "activation": None},
}
_QFORMER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "cross_attention_frequency": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LANGUAGES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_DECODER, **_GROUPED, "tie_word_embeddings": True},
    "phi": {"model_type": "phi", **_DECODER},
    "stablelm": {"model_type": "stablelm", **_DECODER, "num_key_value_heads": 3},
    "qwen2": {"model_type": "qwen2", **_DECODER, "num_key_value_heads": 1},
    "qwen3": {"model_type": "qwen3", **_DECODER, **_GROUPED},
    "mistral": {"model_type": "mistral", **_DECODER, **_GROUPED},
    "gemma": {"model_type": "gemma", **_DECODER, **_GROUPED, "tie_word_embeddings": True},
    "gemma2": {
        "model_type": "gemma2",
        **_DECODER,
        **_GROUPED,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 0.1,
    },
}
WIDTHS = {"clip": 16, "siglip": 16, "eva": 16, "efficientnet": 1280}


class Tiny:
    """Builds configurations, models and batches by the names of their parts."""

    vocabulary = VOCABULARY
    image_id = IMAGE_ID

    def config(
        self,
        tower: str = "clip",
        connector: str = "mlp2x_gelu",
        language: str = "llama",
        text: dict[str, Any] | None = None,
        **fields: Any,
    ) -> VisionLanguageConfig:
        parts = dict(CONNECTORS[connector])
        if connector == "qformer":
            parts["qformer_config"] = {**_QFORMER, "encoder_hidden_size": WIDTHS[tower]}
        return VisionLanguageConfig(
            vision_config=TOWERS[tower],
            connector_config=parts,
            text_config={**LANGUAGES[language], **(text or {})},
            **{"image_token_id": IMAGE_ID, **fields},
        )

    def model(self, *parts: str, seed: int = 0, **fields: Any) -> VisionLanguageModel:
        """In evaluation mode, with weights large enough that every token leaves its mark on the logits."""
        torch.manual_seed(seed)
        model = VisionLanguageModel(self.config(*parts, **fields)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.3 if "embed" in name else parameter.shape[1] ** -0.5)
                elif name.endswith(("bias", "query_tokens")):
                    parameter.normal_(std=0.1)
        return model

    def photos(self, config: VisionLanguageConfig, count: int, seed: int = 1) -> torch.Tensor:
        size = config.vision_config.image_size
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))

    def words(self, count: int, seed: int = 2) -> list[int]:
        return torch.randint(3, IMAGE_ID, (count,), generator=torch.Generator().manual_seed(seed)).tolist()

    def batch(self, config: VisionLanguageConfig, photos: Sequence[int] = (1,), words: Sequence[int] = (6,)) -> dict[str, torch.Tensor]:
        """Row r has `photos[r]` photos before its second word and `words[r]` words; labelled are its last three; padded on the left."""
        rows = []
        for row, (images, count) in enumerate(zip(photos, words, strict=True)):
            first, *rest = self.words(count, seed=10 + row)
            rows.append([first, *[IMAGE_ID] * (images * config.image_tokens), *rest])
        longest = max(map(len, rows))
        batch = {
            "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        }
        batch["labels"] = torch.where(torch.arange(longest) >= longest - 3, batch["input_ids"], -100)
        if sum(photos):
            batch["pixel_values"] = self.photos(config, sum(photos))
        return batch


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture
def transformers_log() -> Iterator[list[str]]:
    """What transformers says while the test runs; it writes to a handler of its own, past pytest's."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer that knows a few words, ChatML's marks and the placeholder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["What is on the table?", "a dog and two red cups on the table"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|im_end|>")
