"""salticid chat: several questions in a row, about a photo or none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from salticid.cli.flags import Device, MaxNewTokens, Model, Precision, Seed, Temperature
from salticid.cli.photos import check_exists
from salticid.cli.session import open_model
from salticid.errors import InputError, SalticidError

if TYPE_CHECKING:
    from salticid.engine.vision_language import VisionLanguage

EXAMPLE = "Example:  salticid chat photo.jpg"

HELP = """\
/image PATH  look at this photo, and start over
/reset       start over, with the same photo
/help        show this
/quit        leave (so does Ctrl-D)
Anything else is a question. Ctrl-C stops an answer."""


def chat(
    photo: Annotated[str | None, typer.Argument(metavar="PHOTO", help="The photo to talk about.")] = None,
    model: Model = "nano",
    precision: Precision = "auto",
    device: Device = "auto",
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    seed: Seed = None,
) -> None:
    """Talk about a photo, over several turns; /help lists the commands. Reads questions from a pipe too, one a line."""
    if photo is not None:
        check_exists(photo)
    with open_model(model, precision, device) as vlm:
        talk = Conversation(vlm, {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed})
        if photo is not None:
            talk.show(photo)
        if sys.stdin.isatty():
            print(HELP)
        code = 0
        for line in _lines():
            try:
                if not talk.obey(line):
                    break
            except SalticidError as error:
                print(f"error: {error}", file=sys.stderr)
                code = error.exit_code
    if code and not sys.stdin.isatty():
        raise typer.Exit(code)


class Conversation:
    """A photo and what has been said about it."""

    def __init__(self, vlm: VisionLanguage, options: dict[str, Any]):
        self.vlm, self.options = vlm, options
        self.photo: str | None = None
        self.messages: list[dict[str, Any]] = []

    def obey(self, line: str) -> bool:
        """Do what one line says; false when it says to leave.

        Raises:
            SalticidError: an unknown command, a photo that cannot be read, a conversation that has grown too long.
        """
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return False
        if command == "/help":
            print(HELP)
        elif command == "/reset":
            self.messages = []
        elif command == "/image":
            self.show(rest.strip().strip("'\""))
        elif command.startswith("/"):
            raise InputError(f"unknown command {command}; /help lists the commands")
        else:
            self.answer(line)
        return True

    def show(self, path: str) -> None:
        """Start over with another photo; it is read at once, so that a bad one is known before the first question."""
        from salticid.models.photos import read_photo

        path = str(Path(path).expanduser()) if path else path
        if not path:
            raise InputError("/image needs the path of a photo")
        read_photo(path)
        self.photo, self.messages = path, []

    def answer(self, question: str) -> None:
        """Print the answer as it is written; an answer that is cut off by Ctrl-C is forgotten."""
        shown = [{"type": "image", "image": self.photo}] if self.photo and not self.messages else []
        asked = {"role": "user", "content": [*shown, {"type": "text", "text": question}]}
        said = []
        try:
            for piece in self.vlm.chat_stream([*self.messages, asked], **self.options):
                said.append(piece)
                print(piece, end="", flush=True)
            self.messages += [asked, {"role": "assistant", "content": "".join(said)}]
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
        print(flush=True)


def _lines() -> Iterator[str]:
    """Lines that are not empty, until the end of input; with a prompt, and editing, where somebody types."""
    prompt = ""
    if sys.stdin.isatty():
        with suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  gives `input` its line editing
        prompt = "> "
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line:
            yield line
