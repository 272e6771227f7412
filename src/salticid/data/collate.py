"""Examples to a padded batch of tensors.

B batch, T tokens, I images of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from salticid.data.conversation import Example
from salticid.data.llava_labels import tokenize_as_llava
from salticid.data.templates import Template
from salticid.data.tokenize import IGNORE_INDEX, Tokens, tokenize_example
from salticid.errors import ConfigurationError


def conversation_mask(conversation_BT: torch.Tensor) -> torch.Tensor:
    """Who may look at whom: (B, 1, T, T), true where row t sees column s.

    A token sees earlier tokens of its own conversation and of the shared prefix (conversation 0). Padding (-1) sees only earlier
    padding and itself, so that no row is empty: softmax over nothing is not a number.
    """
    length = conversation_BT.shape[1]
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=conversation_BT.device).tril()
    same_BTT = conversation_BT[:, :, None] == conversation_BT[:, None, :]
    prefix_BTT = (conversation_BT[:, None, :] == 0) & (conversation_BT[:, :, None] >= 0)
    return (causal_TT & (same_BTT | prefix_BTT))[:, None]


def answer_index(labels_BT: torch.Tensor) -> torch.Tensor:
    """Which answer of its row each token belongs to, from 1; 0 where nothing is learned (B, T)."""
    labelled_BT = labels_BT != IGNORE_INDEX
    starts_BT = labelled_BT & ~torch.nn.functional.pad(labelled_BT[:, :-1], (1, 0))
    return starts_BT.cumsum(dim=1) * labelled_BT


def answer_weights(labels_BT: torch.Tensor) -> torch.Tensor:
    """Weights (B, T): 1 / sqrt(n) for each of the n tokens of an answer, scaled to mean one over the labelled tokens."""
    labelled_BT = labels_BT != IGNORE_INDEX
    answer_BT = answer_index(labels_BT)
    lengths_BA = torch.zeros(labels_BT.shape[0], int(answer_BT.max()) + 1).scatter_add_(1, answer_BT, labelled_BT.float())
    weights_BT = lengths_BA.gather(1, answer_BT).clamp(min=1).rsqrt() * labelled_BT
    return weights_BT * labelled_BT.sum() / weights_BT.sum().clamp(min=1e-12)


class Collator:
    """Turns a list of examples into model inputs.

    Args:
        processor: a `VisionLanguageProcessor`: its tokenizer, its image processor and its number of tokens per photo are used.
        template: how conversations are written down.
        max_length: longest sequence, in tokens.
        pack: put all conversations about a photo behind one shared image prefix; each still sees only the photo and itself.
        weigh_answers: weigh each answer's tokens by 1 / sqrt(their number), so that a one-word answer is not drowned by captions
            (square averaging, InternVL 2.5, arXiv 2412.05271, section 4); the weights of a batch have mean one.
        label_rule: learn what LLaVA's training script would (see `llava_labels`), one of `LABEL_RULES`; needs `pack=False`.
        hide_padding_ids: hide every id of padding from attention, wherever it stands but at the start. TinyGPT-V's upstream does so, and
            its padding begins a text too (template `tinygpt_v_tasks_upstream`); needs `pack=False`.

    Returns when called: `input_ids`, `labels`, `position_ids` (B, T), `attention_mask` (B, 1, T, T) when packed, else (B, T), and
    `pixel_values` (I, 3, H, W) where there are photos.
    """

    def __init__(
        self,
        processor: Any,
        template: Template,
        max_length: int | None = None,
        pack: bool = True,
        weigh_answers: bool = False,
        label_rule: str | None = None,
        hide_padding_ids: bool = False,
    ):
        if label_rule is not None and pack:
            raise ConfigurationError(f"label_rule {label_rule!r} counts whole conversations, which cannot be packed; set pack to false")
        if hide_padding_ids and pack:
            raise ConfigurationError("hide_padding_ids is for conversations one by one; set pack to false")
        self.hide_padding_ids = hide_padding_ids
        self.processor, self.template, self.max_length, self.pack = processor, template, max_length, pack
        self.label_rule = label_rule
        self.weigh_answers = weigh_answers

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        rows: list[Tokens] = []
        photos: list[Any] = []
        for example in examples:
            sequences = self.tokenize(example)
            rows.extend(sequences)
            for _ in sequences:
                photos.extend(example.images)
        batch = self._pad(rows)
        if self.weigh_answers:
            batch["label_weights"] = answer_weights(batch["labels"])
        if photos:
            batch["pixel_values"] = self.processor.image_processor(photos, return_tensors="pt")["pixel_values"]
        return batch

    def tokenize(self, example: Example) -> list[Tokens]:
        """The rows that an example gives; raises `DataError` where none of its conversations fits `max_length`."""
        tokenizer, image_tokens = self.processor.tokenizer, self.processor.image_tokens
        if self.label_rule is not None:
            return tokenize_as_llava(example, tokenizer, self.template, image_tokens, self.label_rule, self.max_length)
        return tokenize_example(example, tokenizer, self.template, image_tokens, self.max_length, self.pack)

    def _pad(self, rows: Sequence[Tokens]) -> dict[str, torch.Tensor]:
        longest = max(len(row.ids) for row in rows)

        def stack(values: list[list[int]], pad: int) -> torch.Tensor:
            return torch.tensor([row + [pad] * (longest - len(row)) for row in values])

        padding = self.processor.tokenizer.pad_token_id or 0
        conversation_BT = stack([row.conversation for row in rows], -1)
        ids_BT = stack([row.ids for row in rows], padding)
        seen_BT = conversation_BT >= 0
        if self.hide_padding_ids:
            seen_BT[:, 1:] &= ids_BT[:, 1:] != padding
        return {
            "input_ids": ids_BT,
            "labels": stack([row.labels for row in rows], IGNORE_INDEX),
            "position_ids": stack([row.positions for row in rows], 0),
            "attention_mask": conversation_mask(conversation_BT) if self.pack else seen_BT.long(),
        }
