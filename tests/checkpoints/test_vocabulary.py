"""A smaller vocabulary writes the same text, and the kept texts in the same tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from salticid.checkpoints.vocabulary import shrink_bpe
from salticid.errors import ConfigurationError

CORPUS = [
    "a dog is running on the beach",
    "two dogs are running through the water",
    "the running man and the swimming woman",
    "there is nothing on the table, nothing at all",
    "another mother and another brother",
]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def trained(merges: int = 200) -> Tokenizer:
    """Specials in front, and one far behind as Qwen has them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=260 + merges, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens(["<|late|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <|late|>", special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "<|late|>")]
    )
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return trained()


def old_encoding(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("first_merges", [1, 20, 50])
def test_kept_texts_keep_their_tokens(tokenizer: Tokenizer, first_merges: int) -> None:
    kept = CORPUS[:3]
    shrunk, old_ids = shrink_bpe(tokenizer, kept, first_merges, ["<image>"])
    assert len(old_ids) == shrunk.get_vocab_size() < tokenizer.get_vocab_size()
    for text in kept:
        ids = shrunk.encode(text, add_special_tokens=False).ids
        assert [old_ids[index] for index in ids] == old_encoding(tokenizer, text)
    for index, old in enumerate(old_ids):
        assert shrunk.id_to_token(index) == ("<image>" if old < 0 else tokenizer.id_to_token(old))


def test_every_merge_that_is_left_can_be_reached(tokenizer: Tokenizer) -> None:
    shrunk, _ = shrink_bpe(tokenizer, CORPUS[:1], 10)
    model = json.loads(shrunk.to_str())["model"]
    vocabulary = set(model["vocab"])
    parts = {part for pair in model["merges"] for part in pair}
    results = {"".join(pair) for pair in model["merges"]}
    assert parts | results <= vocabulary
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    assert vocabulary == alphabet | results | set(SPECIAL) | {"<|late|>"}


@given(st.text(max_size=40))
@settings(max_examples=30, deadline=None)
def test_any_text_goes_in_and_out(text: str) -> None:
    shrunk, _ = shrink_bpe(SHARED, CORPUS[:1], 5, ["<image>"])
    assert shrunk.decode(shrunk.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


@given(st.lists(st.text(alphabet="adeghinorst ,", min_size=1, max_size=30), min_size=1, max_size=4), st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_any_kept_text_keeps_its_tokens(texts: list[str], first_merges: int) -> None:
    shrunk, old_ids = shrink_bpe(SHARED, texts, first_merges)
    for text in texts:
        assert [old_ids[index] for index in shrunk.encode(text, add_special_tokens=False).ids] == old_encoding(SHARED, text)


SHARED = trained()


def test_a_token_with_two_ways_to_it_keeps_the_one_that_is_taken() -> None:
    """ "abc" is first listed as a + bc, but b + c is merged too late for it: encoding goes through ab."""
    vocabulary = {token: index for index, token in enumerate(["a", "b", "c", "abc", "ab", "bc"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "bc"), ("a", "b"), ("ab", "c"), ("b", "c")]))
    shrunk, old_ids = shrink_bpe(tokenizer, ["abc"], 0)
    assert [old_ids[index] for index in shrunk.encode("abc").ids] == tokenizer.encode("abc").ids == [3]


def test_special_tokens_stay_special_and_are_renumbered(tokenizer: Tokenizer) -> None:
    shrunk, old_ids = shrink_bpe(tokenizer, [], 3, ["<image>", "<|im_end|>"])
    assert old_ids[-1] == -1
    assert old_ids.count(-1) == 1  # "<|im_end|>" is known already
    text = "<|im_start|>a dog<|im_end|><image>"
    encoding = shrunk.encode(text)
    for token in ("<s>", "<|late|>", "<|im_start|>", "<|im_end|>", "<image>"):
        assert shrunk.token_to_id(token) in encoding.ids
    assert [encoding.tokens[0], encoding.tokens[-1]] == ["<s>", "<|late|>"]
    assert shrunk.decode(encoding.ids) == "a dog"


def test_renumbering_of_bert_like_frames(tokenizer: Tokenizer) -> None:
    framed = Tokenizer.from_str(tokenizer.to_str())
    late = ("<|late|>", framed.token_to_id("<|late|>"))
    framed.post_processor = processors.Sequence([processors.ByteLevel(), processors.RobertaProcessing(late, ("<s>", 0))])
    shrunk, _ = shrink_bpe(framed, [], 3)
    assert shrunk.encode("a").ids[-1] == shrunk.token_to_id("<|late|>") < late[1]


def test_padding_and_truncation_are_not_kept(tokenizer: Tokenizer) -> None:
    padded = Tokenizer.from_str(tokenizer.to_str())
    padded.enable_padding(pad_id=padded.token_to_id("<|late|>"), pad_token="<|late|>")
    padded.enable_truncation(3)
    shrunk, _ = shrink_bpe(padded, [], 3)
    assert shrunk.padding is None
    assert shrunk.truncation is None


def test_added_words_that_are_not_special_stay() -> None:
    tokenizer = trained(40)
    tokenizer.add_tokens([AddedToken("[vqa]", special=False)])
    shrunk, old_ids = shrink_bpe(tokenizer, [], 3)
    assert old_ids[shrunk.token_to_id("[vqa]")] == tokenizer.token_to_id("[vqa]")


@pytest.mark.parametrize("model", [models.WordLevel({"a": 0}, unk_token="a"), models.Unigram([("a", 0.0)])])
def test_other_kinds_are_refused(model: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"only BPE vocabularies can be shrunk, this one is {type(model).__name__}"):
        shrink_bpe(Tokenizer(model), [], 3)
