"""tiktoken's vocabularies: the same ids as its algorithm gives, written out plainly here."""

from __future__ import annotations

import base64
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest

from salticid.checkpoints.moe_llava_folder import read_tokenizer
from salticid.checkpoints.tiktoken_vocabulary import END, TIKTOKEN_FILES, Specials, find_tiktoken, read_tiktoken
from salticid.errors import CheckpointError

LEARNED = (b" a", b"th", b" th", b" the", b"at", b" cat", b" an", b"an", b"\xc3\xa4", b"in", b"ing", b"12", b"he", b"her")
SPECIALS = Specials(273, (END, "<|extra_0|>"), "<|extra_0|>")  # with a hole in front, as StableLM's


@pytest.fixture
def ranks() -> dict[bytes, int]:
    # A token is learned after its parts.
    parts = (b" t", b" c", b"\xc3\xa4")
    tokens = [bytes([byte]) for byte in range(256)] + [*parts, *sorted(set(LEARNED) - set(parts), key=len)]
    return {token: rank for rank, token in enumerate(tokens)}


@pytest.fixture
def file(tmp_path: Path, ranks: dict[bytes, int]) -> Path:
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return path


def plain(text: str, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's encoding, for texts of letters, blanks and digits."""
    ids = []
    for piece in re.findall(r" ?[^\W\d]+|\d| +(?!\S)| ", text):
        parts = [bytes([byte]) for byte in piece.encode()]
        if piece.encode() in ranks:
            parts = [piece.encode()]
        while len(parts) > 1:
            joined = [ranks.get(left + right, 10**9) for left, right in pairwise(parts)]
            if min(joined) == 10**9:
                break
            place = joined.index(min(joined))
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        ids.extend(ranks[part] for part in parts)
    return ids


def test_ids_are_tiktokens(file: Path, ranks: dict[bytes, int]) -> None:
    tokenizer = read_tiktoken(file, SPECIALS)
    assert len(ranks) == 272
    draw = random.Random(0)
    words = ["the", "cat", "hat", "an", "ä", "thing", "her", "1", "212", "zebra"]
    for _ in range(200):
        text = " ".join(draw.choices(words, k=5))
        ids = tokenizer(text)["input_ids"]
        assert ids == plain(text, ranks)
        assert tokenizer.decode(ids) == text
    assert any(ranks[token] in tokenizer(" the cat")["input_ids"] for token in (b" the", b" cat"))


def test_special_tokens_keep_their_ids_and_new_ones_get_their_own(file: Path) -> None:
    tokenizer = read_tiktoken(file, SPECIALS)
    assert tokenizer("a<|endoftext|>")["input_ids"] == [97, 273]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (273, 274)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert tokenizer.convert_tokens_to_ids("<image>") == 275
    assert tokenizer("<image>a")["input_ids"] == [275, 97]


def test_a_folder_with_the_file_has_a_tokenizer(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="is damaged"):  # far fewer tokens than Qwen's
        read_tokenizer(file.parent)
    monkeypatch.setitem(TIKTOKEN_FILES, file.name, SPECIALS)
    assert find_tiktoken(file.parent) == file
    assert read_tokenizer(file.parent).convert_tokens_to_ids("<image>") == 275
    (file.parent / "tokenizer.json").write_text("{}")
    assert find_tiktoken(file.parent) is None


def test_published_special_tokens() -> None:
    qwen, stablelm = TIKTOKEN_FILES["qwen.tiktoken"], TIKTOKEN_FILES["arcade100k.tiktoken"]
    assert qwen.first + len(qwen.tokens) == 151851
    assert stablelm.first + len(stablelm.tokens) == 100289


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-4] + b"x y z\n",
        lambda text: b"".join(text.splitlines(True)[:255] + text.splitlines(True)[256:]),
        lambda text: text[: len(text) // 2],
        lambda _: b"<html>",
    ],
)
def test_a_damaged_file_is_one_line(file: Path, spoil: object) -> None:
    file.write_bytes(spoil(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="is damaged"):
        read_tiktoken(file, SPECIALS)
