from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from salticid.data.conversation import Turn
from salticid.data.templates import get_template
from salticid.engine.load import load
from salticid.engine.vision_language import VisionLanguage
from salticid.errors import ImageError, InputError

LENGTH = {"max_new_tokens": 12}
QUESTION = "What is in this photo?"


def png(photo: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def looks(vlm: VisionLanguage, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many photos each pass through the tower had."""
    seen: list[int] = []
    original = vlm.model.vision_tower.forward

    def counted(pixel_values: torch.Tensor) -> torch.Tensor:
        seen.append(pixel_values.shape[0])
        return original(pixel_values)

    monkeypatch.setattr(vlm.model.vision_tower, "forward", counted)
    return seen


def test_ask_is_processor_and_generate(vlm: VisionLanguage, photos: list[np.ndarray]) -> None:
    prompt = get_template("nano").prompt([Turn(QUESTION, "")], images=2)
    inputs = vlm.processor(images=photos[:2], text=prompt)
    ids = vlm.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert vlm.ask(photos[:2], QUESTION, **LENGTH) == vlm.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_pieces_of_a_stream_are_the_answer(vlm: VisionLanguage, photos: list[np.ndarray]) -> None:
    pieces = list(vlm.stream(photos[0], QUESTION, **LENGTH))
    assert len(pieces) > 2
    assert "".join(pieces) == vlm.ask(photos[0], QUESTION, **LENGTH)


def test_answers_depend_on_photo_and_question(vlm: VisionLanguage, photos: list[np.ndarray]) -> None:
    answers = {vlm.ask(photo, QUESTION, **LENGTH) for photo in [*photos, None]}
    assert len({*answers, vlm.ask(photos[0], "two red cups?", **LENGTH)}) == 5


def test_photos_whose_tokens_are_known_are_not_looked_at(vlm: VisionLanguage, photos: list[np.ndarray], looks: list[int]) -> None:
    known = vlm.model.get_image_features(vlm.processor.image_processor(photos, return_tensors="pt")["pixel_values"])
    asked = [(photo, QUESTION) for photo in photos]
    expected = vlm.ask_many(asked, **LENGTH)
    fresh = VisionLanguage(vlm.model, vlm.processor)
    fresh.keep(photos, known)
    looks.clear()
    assert fresh.ask_many(asked, **LENGTH) == expected
    fresh.keep(photos[:1], known[1:2])
    assert fresh.ask(photos[0], QUESTION, **LENGTH) == expected[1]
    assert looks == []
    with pytest.raises(InputError, match="2 photos but image tokens of 1"):
        fresh.keep(photos[:2], known[:1])


def test_photos_of_every_kind_give_the_same(vlm: VisionLanguage, photos: list[np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png(photos[0]))
    kinds: list[Any] = [photos[0], path, str(path), png(photos[0]), Image.fromarray(photos[0]), torch.from_numpy(photos[0]), [path]]
    assert len({vlm.ask(kind, QUESTION, **LENGTH) for kind in kinds}) == 1


def test_caption_asks_for_a_description(vlm: VisionLanguage, photos: list[np.ndarray]) -> None:
    assert vlm.caption(photos[0], **LENGTH) == vlm.ask(photos[0], "Describe the photo.", **LENGTH)


def test_chat_is_ask_and_remembers(vlm: VisionLanguage, photos: list[np.ndarray]) -> None:
    first: dict[str, Any] = {"role": "user", "content": [{"type": "image", "image": photos[0]}, {"type": "text", "text": QUESTION}]}
    answer = vlm.chat([first], **LENGTH)
    assert answer == vlm.ask(photos[0], QUESTION, **LENGTH)
    follow_up = vlm.chat([first, {"role": "assistant", "content": "a dog"}, "yes?"], **LENGTH)
    assert follow_up != vlm.chat([first, {"role": "assistant", "content": "two red cups"}, "yes?"], **LENGTH)
    assert "".join(vlm.chat_stream([first], **LENGTH)) == answer


def test_a_photo_is_looked_at_once(vlm: VisionLanguage, photos: list[np.ndarray], looks: list[int], tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png(photos[0]))
    for image in (path, str(path), [path, photos[1]], photos[1].copy()):
        vlm.ask(image, QUESTION, **LENGTH)
    assert looks == [1, 1]
    path.write_bytes(png(photos[2]) + b" ")  # another photo under the same name
    assert vlm.ask(path, QUESTION, **LENGTH) == vlm.ask(photos[2], QUESTION, **LENGTH)
    assert looks == [1, 1, 1, 1]


def test_only_the_latest_photos_are_kept(vlm: VisionLanguage, looks: list[int]) -> None:
    flat = [np.full((4, 4, 3), shade, dtype=np.uint8) for shade in range(0, 90, 10)]
    for photo in [*flat, flat[-1], flat[0]]:
        vlm.ask(photo, QUESTION, max_new_tokens=1)
    assert len(looks) == len(flat) + 1


def test_order_of_photos_counts(vlm: VisionLanguage, photos: list[np.ndarray]) -> None:
    assert vlm.ask(photos[:2], QUESTION, **LENGTH) != vlm.ask(photos[1::-1], QUESTION, **LENGTH)


def test_stop_strings_and_seeds(vlm: VisionLanguage, photos: list[np.ndarray]) -> None:
    answer = vlm.ask(photos[0], QUESTION, **LENGTH)
    assert vlm.ask(photos[0], QUESTION, stop=answer[3:5], **LENGTH) == answer[: answer.index(answer[3:5])].rstrip()
    drawn = [vlm.ask(photos[0], QUESTION, temperature=1.0, seed=seed, **LENGTH) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_answer_ends_where_the_template_ends_it(vlm: VisionLanguage, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vlm._ends() == (frozenset({2}), ())
    vlm.model.generation_config.eos_token_id = [0, 7]
    assert vlm._ends() == (frozenset({0, 7, 2}), ())  # <|im_end|> of the template counts too
    vlm._template = get_template("plain")
    assert vlm._ends() == (frozenset({0, 7}), ("\n",))


@pytest.mark.parametrize("question", ["what is <image>?", "<|im_end|> hello <|im_start|>", "<|endoftext|>?"])
def test_special_tokens_in_a_question_are_plain_text(vlm: VisionLanguage, photos: list[np.ndarray], question: str) -> None:
    assert vlm.ask(photos[0], question, **LENGTH)
    inputs = vlm._inputs([Turn(question, question), Turn("so?", "")], photos[:1])
    ids = inputs["input_ids"][0].tolist()
    # one photo, two questions, one answer
    assert [ids.count(token) for token in (0, 1, 2, 3)] == [0, 2, 1, vlm.processor.image_tokens]


def test_refusals(vlm: VisionLanguage, photos: list[np.ndarray], tmp_path: Path) -> None:
    for question in ("", "  \n"):
        with pytest.raises(InputError, match="the question is empty"):
            vlm.ask(photos[0], question)
    with pytest.raises(InputError, match="photos come first"):
        vlm.ask("why?", photos[0])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown generation option beams"):
        vlm.ask(photos[0], QUESTION, beams=3)
    with pytest.raises(ImageError, match="no such photo"):
        vlm.stream(tmp_path / "none.jpg", QUESTION)  # at once, not at the first piece


def test_the_model_is_left_in_evaluation_mode(tiny_model_folder: Path) -> None:
    assert not load(tiny_model_folder, device="cpu").model.training
