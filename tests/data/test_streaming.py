from __future__ import annotations

import io
import json
import logging
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from salticid.data.conversation import Turn
from salticid.data.streaming import ShardPhoto, WebDataset, find_shards
from salticid.errors import ConfigurationError, DataError


def photo(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, *members: tuple[str, bytes], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(number: int, shard_number: int = 0) -> list[tuple[str, bytes]]:
    key = f"{shard_number:05d}{number:04d}"
    words = {"caption": f"A (Red) Dog {shard_number} {number}.", "url": "http://x", "status": "success"}
    return [(f"{key}.jpg", photo(number)), (f"{key}.json", json.dumps(words).encode()), (f"{key}.txt", b"unused")]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of three samples."""
    for number in range(2):
        shard(tmp_path / f"{number:05d}.tar", *[member for index in range(3) for member in sample(index, number)])
    return tmp_path


def test_samples_of_all_shards_in_any_order(shards: Path) -> None:
    source = WebDataset(shards)
    assert len(source) == 6
    for index in (5, 0, 3):
        example = source.example(index, 0)
        assert example.conversations == ((Turn("", f"a red dog {index // 3} {index % 3}"),),)
        (image,) = example.images
        assert Image.open(io.BytesIO(image.read())).getpixel((0, 0)) == (index % 3, 0, 0)
    assert pickle.loads(pickle.dumps(source)).example(4, 0) == source.example(4, 1)
    assert source.damaged == []
    assert source.incomplete == 0


def test_the_reader_of_photos_takes_a_photo_in_a_shard(shards: Path) -> None:
    from salticid.errors import ImageError
    from salticid.models.photos import read_photo

    (image,) = WebDataset(shards).example(1, 0).images
    assert read_photo(image).size == (6, 4)
    with pytest.raises(ImageError, match=r"00000\.tar, byte 0.* is truncated|00000\.tar, byte"):
        read_photo(ShardPhoto(image.shard, image.offset, image.size - 20))


def test_words_as_written_behind_a_question(shards: Path) -> None:
    (turns,) = WebDataset(shards, question="What is it?", clean=False).example(0, 0).conversations
    assert turns == (Turn("What is it?", "A (Red) Dog 0 0."),)


def test_captions_in_text_files_and_members_in_folders(tmp_path: Path) -> None:
    members = [
        ("./a/one.PNG", photo(1)),
        ("./a/one.txt", b"A cat."),
        ("./b/one.cls", b"3"),
        ("./b/one.webp", photo(2)),
        ("./b/one.txt", b" "),
    ]
    shard(tmp_path / "x.tar", *members)
    source = WebDataset(tmp_path)
    assert source.example(0, 0).conversations == ((Turn("", "a cat"),),)
    assert source.example(1, 0).conversations == ()


def test_samples_that_lack_a_part_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [*sample(0), ("lone.jpg", photo(1)), ("mute.json", b"{}"), ("empty.jpg", b""), ("empty.txt", b"words"), *sample(9)]
    shard(tmp_path / "x.tar", *members)
    with caplog.at_level(logging.WARNING):
        source = WebDataset(tmp_path)
    assert (len(source), source.incomplete) == (2, 3)
    assert "3 samples lack a photo or a caption" in caplog.text


@pytest.mark.parametrize("cut", [512 * 3 + 100, 512 * 9, -512 * 19, 600])
def test_a_shard_that_breaks_off_is_an_error_or_counted(shards: Path, cut: int) -> None:
    path = shards / "00001.tar"
    os.truncate(path, cut if cut > 0 else path.stat().st_size + cut)
    with pytest.raises(DataError, match=r"1 of 2 shards are cut short or damaged, such as .*00001\.tar .*skip_damaged above 0\.5"):
        WebDataset(shards)
    source = WebDataset(shards, skip_damaged=0.5)
    assert 3 <= len(source) <= 6
    assert len(source.damaged) == 1
    for index in range(len(source)):
        (image,) = source.example(index, 0).images
        assert len(image.read()) == image.size


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", *sample(0), *sample(1))
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for size in range(0, end, 97):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="cut short or damaged"):
            WebDataset(tmp_path)


def test_files_that_are_no_shard_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(DataError, match=r"cut short or damaged, such as .*x\.tar"):
        WebDataset(tmp_path)
    shard(tmp_path / "x.tar")
    with pytest.raises(DataError, match="hold no photo with a caption beside it"):
        WebDataset(tmp_path)


def test_a_damaged_header_in_the_middle_is_noticed(shards: Path) -> None:
    path = shards / "00000.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"000000001.jpg") + 150] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"00000\.tar \(it breaks off or is damaged at byte"):
        WebDataset(shards)
    assert len(WebDataset(shards, skip_damaged=0.5)) == 4


@pytest.mark.parametrize("words", [b"{", b'{"caption": 3}', b"[]", b"\xff\xfe"])
def test_a_caption_that_cannot_be_read_is_named_or_passed_over(tmp_path: Path, words: bytes) -> None:
    shard(tmp_path / "x.tar", ("1.jpg", photo(1)), ("1.json", words))
    with pytest.raises(DataError, match=r"x\.tar, byte \d+: the caption cannot be read .*fetch the shard again"):
        WebDataset(tmp_path).example(0, 0)
    assert WebDataset(tmp_path, skip_damaged=0.01).example(0, 0).conversations == ()


@pytest.mark.parametrize("words", [b'{"caption": null}', b"{}"])
def test_a_sample_without_words_says_nothing(tmp_path: Path, words: bytes) -> None:
    shard(tmp_path / "x.tar", ("1.jpg", photo(1)), ("1.json", words))
    assert WebDataset(tmp_path).example(0, 0).conversations == ()


def test_patterns(tmp_path: Path) -> None:
    names = [f"{number:05d}.tar" for number in (0, 1, 2, 10)] + ["b-1.tar"]
    for name in names:
        (tmp_path / name).touch()

    def found(pattern: str) -> list[str]:
        return [path.name for path in find_shards(tmp_path, pattern)]

    assert found("*.tar") == names
    assert found("{00000..00002}.tar") == names[:3]
    assert found("{00010,b-{1..1}}.tar") == ["00010.tar", "b-1.tar"]
    assert found("0000?.tar") == names[:3]
    with pytest.raises(DataError, match=r"no shard 00003\.tar in .*'\{00000\.\.00003\}\.tar'"):
        found("{00000..00003}.tar")
    with pytest.raises(DataError, match=r"no shard \*\.tgz"):
        found("*.tgz")
    with pytest.raises(DataError, match="There is no folder"):
        find_shards(tmp_path / "none", "*.tar")
    with pytest.raises(ConfigurationError, match="shards is a pattern"):
        WebDataset(tmp_path, shards=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="skip_damaged is a share"):
        WebDataset(tmp_path, skip_damaged=7)


def test_a_kept_index_is_used_while_the_shards_are_the_same(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = WebDataset(shards, index="index.npy")
    assert [path.name for path in shards.iterdir() if "index" in path.name] == ["index.npy"]
    with monkeypatch.context() as patch:
        patch.setattr(WebDataset, "_index", lambda *_: pytest.fail("indexed again"))
        again = WebDataset(shards, index="index.npy")
    assert [again.example(i, 0) for i in range(6)] == [first.example(i, 0) for i in range(6)]
    shard(shards / "00001.tar", *sample(7, 1))
    assert len(WebDataset(shards, index="index.npy")) == 4
    (shards / "index.npy").write_bytes(b"junk")
    assert len(WebDataset(shards, index="index.npy")) == 4
    with pytest.raises(DataError, match="cannot be written"):
        WebDataset(shards, index="nowhere/index.npy")


def test_a_shard_that_went_away_is_named(shards: Path) -> None:
    source = WebDataset(shards)
    (shards / "00001.tar").unlink()
    with pytest.raises(DataError, match=r"00001\.tar cannot be read .*was there"):
        source.example(5, 0)
