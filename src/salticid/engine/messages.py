"""Chat messages, as OpenAI's API writes them, to turns and photos. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from salticid.data.conversation import Turn
from salticid.errors import InputError

if TYPE_CHECKING:
    from salticid.models.photos import ImageSource

Message = str | Mapping[str, Any]
ROLES = ("system", "user", "assistant")
PARTS = ("text", "image")


def read_messages(messages: str | Sequence[Message]) -> tuple[list[Turn], list[ImageSource]]:
    """Turns, the last of them open for an answer, and the photos in the order they are shown.

    Args:
        messages: one question, or a list of questions (strings) and messages `{"role": ..., "content": ...}`. Content is a string,
            or a list of `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}`, whose image is any `ImageSource`.
            A system message, and several messages of one side in a row, are joined by line breaks.

    Raises:
        InputError: an unknown role or part, an answer without a question, no question at the end, or an empty one.
    """
    turns: list[Turn] = []
    photos: list[ImageSource] = []
    question, pending = "", False
    for message in [messages] if isinstance(messages, str) else messages:
        role, text, images = _read(message)
        photos.extend(images)
        if role == "assistant":
            if images:
                raise InputError("an assistant message holds a photo; photos belong to the user's messages")
            turns.append(Turn(_asked(question, pending), text))
            question, pending = "", False
        else:
            question, pending = f"{question}\n{text}".strip(), pending or role == "user"
    return [*turns, Turn(_asked(question, pending), "")], photos


def _asked(question: str, pending: bool) -> str:
    if not pending:
        raise InputError("the messages lack a question; each answer follows a user message, and the last message is the user's")
    if not question:
        raise InputError("the question is empty; ask something, such as 'What is in this photo?'")
    return question


def _read(message: Message) -> tuple[str, str, list[ImageSource]]:
    """Role, text and photos of one message."""
    if isinstance(message, str):
        return "user", message.strip(), []
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise InputError("a message is a string, or a dictionary with 'role' and 'content'")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise InputError(f"unknown role {role!r}; known: {', '.join(ROLES)}")
    if isinstance(content, str):
        return role, content.strip(), []
    texts: list[str] = []
    images: list[ImageSource] = []
    for part in content or ():
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in PARTS or kind not in part:
            raise InputError(
                f"cannot read a content part of type {kind!r}; known: {{'type': 'text', 'text': ...}}, {{'type': 'image', 'image': ...}}"
            )
        (texts if kind == "text" else images).append(part[kind])
    return role, "\n".join(texts).strip(), images
