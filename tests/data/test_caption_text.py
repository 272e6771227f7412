"""Captions as the text branch reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from salticid.data.caption_text import add_text_branch_tokens, clean_caption, tokenize_captions
from salticid.errors import ConfigurationError, DataError


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    return add_text_branch_tokens(AutoTokenizer.from_pretrained(tiny_model_folder))


def test_cleaning() -> None:
    assert clean_caption(' A "Dog" (brown)  runs ; fast! . ') == "a dog brown runs fast"
    assert clean_caption("it's a man's red-and-white hat, ok?") == "it's a man's red-and-white hat, ok?"


def test_a_tokenizer_gets_what_it_lacks_and_keeps_what_it_has(tiny_model_folder: Path, tmp_path: Path) -> None:
    plain = AutoTokenizer.from_pretrained(tiny_model_folder)
    known = len(plain)
    tokenizer = add_text_branch_tokens(plain)
    new = {"[DEC]": tokenizer.bos_token, "[CLS]": tokenizer.cls_token, "[SEP]": tokenizer.sep_token, "[PAD]": tokenizer.pad_token}
    assert all(name == given for name, given in new.items())
    assert len(tokenizer) == known + 4
    tokenizer.save_pretrained(tmp_path)
    again = add_text_branch_tokens(AutoTokenizer.from_pretrained(tmp_path))
    assert len(again) == len(tokenizer)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_ids_and_mask(tokenizer: Any) -> None:
    ids, mask = tokenize_captions(tokenizer, ["A dog on the beach.", "no"], max_tokens=30)
    assert ids.shape == mask.shape
    assert mask.sum(dim=1).max() == ids.shape[1]
    for row, text in enumerate(("a dog on the beach", "no")):
        kept = ids[row][mask[row].bool()].tolist()
        assert (kept[0], kept[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert tokenizer.decode(kept[1:-1]) == text
        assert set(ids[row][~mask[row].bool()].tolist()) <= {tokenizer.pad_token_id}
    assert mask[1].tolist() == sorted(mask[1].tolist(), reverse=True)


def test_a_long_caption_keeps_its_start_and_its_end_token(tokenizer: Any) -> None:
    ids, mask = tokenize_captions(tokenizer, ["a dog on the beach " * 9], max_tokens=6)
    whole, _ = tokenize_captions(tokenizer, ["a dog on the beach " * 9], max_tokens=200)
    assert ids[0].tolist() == [*whole[0, :5].tolist(), tokenizer.sep_token_id]
    assert mask.tolist() == [[1] * 6]


def test_what_cannot_be_read_is_said(tokenizer: Any, tiny_model_folder: Path) -> None:
    with pytest.raises(DataError, match=r"the caption ' \.\.' has no words"):
        tokenize_captions(tokenizer, ["a dog", " .."], 8)
    with pytest.raises(ConfigurationError, match="max_tokens is 2"):
        tokenize_captions(tokenizer, ["a dog"], 2)
    with pytest.raises(ConfigurationError, match="add them with add_text_branch_tokens"):
        tokenize_captions(AutoTokenizer.from_pretrained(tiny_model_folder), ["a dog"], 8)
