from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import salticid
from salticid.engine.vision_language import VisionLanguage


@pytest.fixture
def chat(run: Any, tiny_model_folder: Path) -> Any:
    """`salticid chat` with these lines on standard input."""

    def call(*arguments: object, lines: tuple[str, ...]) -> Any:
        stdin = "\n".join(lines).encode()
        return run("chat", *arguments, "--model", tiny_model_folder, "--max-new-tokens", 6, stdin=stdin)

    return call


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, Any]]]:
    """What the model is asked; it answers with a count. A photo is `("photo", path)`."""
    conversations: list[list[tuple[str, Any]]] = []

    def answer(self: VisionLanguage, messages: list[dict[str, Any]], **_: Any) -> Any:
        flat: list[tuple[str, Any]] = []
        for message in messages:
            if isinstance(message["content"], str):
                flat.append((message["role"], message["content"]))
                continue
            flat += [
                ("photo", part["image"]) if part["type"] == "image" else (message["role"], part["text"]) for part in message["content"]
            ]
        conversations.append(flat)
        yield f"answer {len(conversations)}"

    monkeypatch.setattr(VisionLanguage, "chat_stream", answer)
    return conversations


def test_answers_are_those_of_the_model(chat: Any, photos: SimpleNamespace, tiny_model_folder: Path) -> None:
    vlm = salticid.load(tiny_model_folder, device="cpu")
    first = vlm.ask(photos.one, "What is this?", max_new_tokens=6)
    content = [{"type": "image", "image": photos.one}, {"type": "text", "text": "What is this?"}]
    second = vlm.chat([{"role": "user", "content": content}, {"role": "assistant", "content": first}, "Why?"], max_new_tokens=6)
    assert chat(photos.one, lines=("What is this?", "", "Why?")) == (0, f"{first}\n{second}\n", "")


def test_photos_and_earlier_turns_are_kept(chat: Any, photos: SimpleNamespace, asked: list[Any]) -> None:
    one, two = str(photos.one), str(photos.two)
    assert chat(one, lines=("a?", "b?", "/reset", "c?", f"/image '{two}'", "d?", "/quit", "e?")).out.splitlines() == [
        f"answer {n}" for n in (1, 2, 3, 4)
    ]
    assert asked == [
        [("photo", one), ("user", "a?")],
        [("photo", one), ("user", "a?"), ("assistant", "answer 1"), ("user", "b?")],
        [("photo", one), ("user", "c?")],
        [("photo", two), ("user", "d?")],
    ]


def test_without_a_photo(chat: Any, asked: list[Any]) -> None:
    assert chat(lines=("a?",)).code == 0
    assert asked == [[("user", "a?")]]


def test_mistakes_are_one_line_and_the_chat_goes_on(chat: Any, photos: SimpleNamespace, asked: list[Any], tmp_path: Path) -> None:
    result = chat(photos.one, lines=("/imge x", f"/image {tmp_path / 'none.jpg'}", "/image", "a?"))
    assert result.code == 2
    assert result.out == "answer 1\n"
    assert [line.split(";")[0][:30] for line in result.err.splitlines()] == [
        "error: unknown command /imge",
        "error: no such photo: " + repr(str(tmp_path))[:8],
        "error: /image needs the path o",
    ]
    assert asked == [[("photo", str(photos.one)), ("user", "a?")]]  # the bad path did not replace the good one


def test_a_bad_first_photo_ends_it(chat: Any, one_clear_line: Any, tmp_path: Path) -> None:
    one_clear_line(chat(tmp_path / "none.jpg", lines=("a?",)), 2, "no such photo")


def test_help_lists_the_commands(chat: Any) -> None:
    out = chat(lines=("/help",)).out
    assert all(command in out for command in ("/image PATH", "/reset", "/help", "/quit"))


def test_ctrl_c_ends_a_piped_chat(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        yield "one"
        raise KeyboardInterrupt

    monkeypatch.setattr(VisionLanguage, "chat_stream", interrupted)
    result = chat(lines=("a?", "b?"))
    assert (result.code, result.err) == (130, "interrupted\n")


def test_ctrl_c_stops_one_answer_where_somebody_types(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from salticid.cli.chat import Conversation

    def interrupted(*_: Any, **__: Any) -> Any:
        yield "one"
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    talk = Conversation(SimpleNamespace(chat_stream=interrupted), {})  # type: ignore[arg-type]
    assert talk.obey("a?")
    assert capsys.readouterr().out == "one\n"
    assert talk.messages == []
