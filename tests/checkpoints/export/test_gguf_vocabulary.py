"""Vocabularies of both of llama.cpp's kinds; where it is at hand, it cuts texts as the tokenizer does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from salticid.checkpoints.export.gguf_language import FILE_TYPES, write_language
from salticid.checkpoints.export.gguf_vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, read_vocabulary
from salticid.checkpoints.tiktoken_vocabulary import PATTERN
from salticid.errors import ConfigurationError

TEXTS = ["What is on the table?", "two red cups and 12 dogs, isn't it", "a dog  on\n\nthe beach", "été ☃"]
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def byte_level(*steps: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps]) if len(steps) > 1 else steps[0]
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_end|>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=310, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.add_tokens([AddedToken("tool_call")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def sentence_piece(space_prefix: bool = True) -> PreTrainedTokenizerFast:
    """As Llama 2, Mistral and Gemma have it: pairs of characters, bytes for what is left."""
    steps = [normalizers.Prepend("▁")] if space_prefix else []
    normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizer
    learned.train_from_iterator(TEXTS[:3] * 3, trainers.BpeTrainer(vocab_size=70, show_progress=False))
    model = json.loads(learned.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *sorted(model["vocab"], key=model["vocab"].get)]
    merges = [tuple(merge) for merge in model["merges"]]
    vocabulary = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizer
    backend.add_special_tokens(["<unk>", "<s>", "</s>", "<image>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_pairs_of_bytes() -> None:
    tokenizer = byte_level(WORDS)
    made = read_vocabulary(tokenizer, len(tokenizer) + 2, "<|im_end|>", "{{ messages }}")
    assert (made.model, made.pre, made.space_prefix, made.chat_template) == ("gpt2", "gpt-2", False, "{{ messages }}")
    assert made.tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert list(made.tokens[-2:]) == [f"[PAD{len(tokenizer)}]", f"[PAD{len(tokenizer) + 1}]"]
    kinds = dict(zip(made.tokens, made.types, strict=True))
    assert (kinds["<image>"], kinds["tool_call"], kinds["Ġthe"], kinds[made.tokens[-1]]) == (CONTROL, USER_DEFINED, NORMAL, UNUSED)
    assert made.ids == {"bos": 0, "eos": 0, "eot": 1}, "llama.cpp would take a missing beginning from another vocabulary"
    assert made.ends("<|im_end|>")
    assert not made.ends("###")
    assert {merge.replace(" ", "") for merge in made.merges} < set(made.tokens)


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([pre_tokenizers.Digits(individual_digits=True), WORDS], "smollm"),
        ([pre_tokenizers.Split(Regex(PATTERN), "isolated"), BYTES], "qwen2"),
        ([pre_tokenizers.Split(Regex(PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)), "isolated"), BYTES], "llama-bpe"),
    ],
)
def test_how_texts_are_cut(steps: list[Any], name: str) -> None:
    assert read_vocabulary(byte_level(*steps), 400, "", "").pre == name


def test_cuts_and_tokenizers_without_a_name() -> None:
    with pytest.raises(
        ConfigurationError, match=r"no name for how this tokenizer cuts texts \(Whitespace \+ bytes\); known here: gpt-2, smol"
    ):
        read_vocabulary(byte_level(pre_tokenizers.Whitespace(), BYTES), 400, "", "")
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    with pytest.raises(ConfigurationError, match="of type WordLevel has no form here"):
        read_vocabulary(words, 1, "", "")


def test_pairs_of_characters() -> None:
    tokenizer = sentence_piece()
    made = read_vocabulary(tokenizer, len(tokenizer), "</s>", "")
    assert (made.model, made.merges, made.space_prefix) == ("llama", (), True)
    assert not read_vocabulary(sentence_piece(space_prefix=False), len(tokenizer), "</s>", "").space_prefix
    kinds = dict(zip(made.tokens, made.types, strict=True))
    assert (kinds["<unk>"], kinds["<s>"], kinds["<0x41>"], kinds["▁"]) == (UNKNOWN, CONTROL, BYTE, NORMAL)
    assert made.ids == {"bos": 1, "eos": 2, "unk": 0}
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    scores = dict(zip(made.tokens, made.scores, strict=True))
    assert [scores["".join(pair)] for pair in merges[:3]] == [0, -1, -2], "the first pair that is merged has the highest score"


@pytest.mark.parametrize(
    "make", [lambda: byte_level(WORDS), lambda: byte_level(pre_tokenizers.Split(Regex(PATTERN), "isolated"), BYTES), sentence_piece]
)
def test_llama_cpp_cuts_alike(make: Callable[[], PreTrainedTokenizerFast], build: Callable[..., Any], tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizer = make()
    model, _ = build(text={"vocab_size": len(tokenizer)})
    model.config.image_token_id = 0
    write_language(model, read_vocabulary(tokenizer, len(tokenizer), "", ""), FILE_TYPES["fp32"], tmp_path / "model.gguf")
    llama = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    for text in TEXTS:
        assert llama.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text, add_special_tokens=False)["input_ids"], text
