"""Captions as a Q-Former's text branch reads them: BLIP's cleaning, then [CLS] words [SEP] as BERT has them, of any tokenizer.

B batch, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from salticid.errors import ConfigurationError, DataError

START = "[DEC]"
"""Stands in place of [CLS] where text is generated (BLIP-2, arXiv 2301.12597, section 3.2)."""
CLASS, END, PADDING = "[CLS]", "[SEP]", "[PAD]"


def clean_caption(caption: str) -> str:
    """Lower case, without stops, quotes and brackets (BLIP's `BlipCaptionProcessor`)."""
    return " ".join(re.sub(r"[.!\"()*#:;~]", " ", caption.lower()).split())


def add_text_branch_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer those of [CLS], [SEP], [PAD] that it lacks, and [DEC]; one that has them all stays as it is.

    Padding has a token of its own: an embedding never learns the row of its padding.
    """
    lacking: dict[str, Any] = {"bos_token": START}
    lacking |= {"cls_token": CLASS} if tokenizer.cls_token is None else {}
    lacking |= {"sep_token": END} if tokenizer.sep_token is None else {}
    others = (tokenizer.eos_token, tokenizer.sep_token, tokenizer.bos_token)
    lacking |= {"pad_token": PADDING} if tokenizer.pad_token is None or tokenizer.pad_token in others else {}
    tokenizer.add_special_tokens(lacking)
    return tokenizer


def tokenize_captions(tokenizer: Any, captions: Sequence[str], max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T) and a mask (B, T) of 0/1: [CLS], the first words of the cleaned caption, [SEP], then padding.

    Raises:
        ConfigurationError: `max_tokens` leaves no room for a word, or the tokenizer lacks a token of `add_text_branch_tokens`.
        DataError: a caption has no words.
    """
    if max_tokens < 3:
        raise ConfigurationError(f"max_tokens is {max_tokens}: [CLS], a word and [SEP] take 3")
    ends = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
    if None in ends:
        raise ConfigurationError("the tokenizer has no [CLS], [SEP] or [PAD]; add them with add_text_branch_tokens")
    texts = [clean_caption(caption) for caption in captions]
    if "" in texts:
        raise DataError(f"the caption {captions[texts.index('')]!r} has no words; leave it out")
    words = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = [torch.tensor([ends[0], *ids[: max_tokens - 2], ends[1]]) for ids in words]
    ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=ends[2])
    lengths_B = torch.tensor([len(row) for row in rows])
    return ids_BT, (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long()
