"""salticid ask: a question about one or more photos."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from salticid.cli.flags import Device, Json, MaxNewTokens, Model, Precision, Seed, Temperature
from salticid.cli.photos import open_arguments
from salticid.cli.session import open_model

EXAMPLE = "Example:  salticid ask photo.jpg 'How many dogs are there?'"


def ask(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTO", help="Photos; - reads one from standard input.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In quotes.")],
    model: Model = "nano",
    precision: Precision = "auto",
    device: Device = "auto",
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    as_json: Json = False,
    timings: Annotated[bool, typer.Option("--time", help="Print how long it took, on standard error.")] = False,
) -> None:
    """Ask a question about one or more photos; the answer is printed as it is written."""
    from salticid.engine.messages import read_messages

    read_messages(question)
    sources = open_arguments(photos)
    clock = [time.monotonic()]
    with open_model(model, precision, device) as vlm:
        clock.append(time.monotonic())
        pieces = vlm.stream(sources, question, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        answer = "".join(_watch(pieces, clock) if as_json else _print(_watch(pieces, clock)))
        tokens = len(vlm.processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
    clock.append(time.monotonic())
    seconds = {"load": clock[1] - clock[0], "first_word": clock[2] - clock[1], "answer": clock[-1] - clock[1]}
    if as_json:
        times = {name: round(value, 3) for name, value in seconds.items()}
        print(json.dumps({"photos": photos, "question": question, "answer": answer, "model": model, "tokens": tokens, "seconds": times}))
    if timings:
        parts = f"first word {seconds['first_word']:.2f} s, whole answer {seconds['answer']:.2f} s ({tokens} tokens)"
        print(f"model loaded in {seconds['load']:.2f} s; {parts}", file=sys.stderr)


def _watch(pieces: Iterator[str], clock: list[float]) -> Iterator[str]:
    """The same pieces; notes when each one came."""
    for piece in pieces:
        clock.append(time.monotonic())
        yield piece


def _print(pieces: Iterator[str]) -> Iterator[str]:
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
            yield piece
    finally:
        print(flush=True)
