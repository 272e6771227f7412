"""The command `salticid`: one verb per file, errors as one line, nothing heavy before a verb needs it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, NoReturn

import typer

import salticid
from salticid.cli import (
    ask,
    assemble,
    bench,
    caption,
    chat,
    convert,
    data,
    env,
    evaluate,
    export,
    locate,
    merge,
    models,
    phrases,
    quantize,
    retrieval,
    session,
    train,
    upcycle,
)
from salticid.errors import SalticidError

INTERRUPTED = 130
UNEXPECTED = 70

app = typer.Typer(pretty_exceptions_enable=False)
app.command(epilog=ask.EXAMPLE)(ask.ask)
app.command(epilog=caption.EXAMPLE)(caption.caption)
app.command(epilog=chat.EXAMPLE)(chat.chat)
app.command(epilog=locate.EXAMPLE)(locate.locate)
app.command(epilog=models.EXAMPLE)(models.models)
app.command(epilog=env.EXAMPLE)(env.env)
app.command(epilog=train.EXAMPLE)(train.train)
app.command(epilog=assemble.EXAMPLE)(assemble.assemble)
app.add_typer(convert.app, name="convert")
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.command(epilog=quantize.EXAMPLE)(quantize.quantize)
app.command(epilog=upcycle.EXAMPLE)(upcycle.upcycle)
app.command(epilog=merge.EXAMPLE)(merge.merge)
app.command(epilog=phrases.EXAMPLE)(phrases.phrases)
app.command(epilog=export.EXAMPLE)(export.export)
app.command("eval", epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command(epilog=retrieval.EXAMPLE)(retrieval.retrieval)


@dataclass
class State:
    """What the options before the verb say."""

    debug: bool = False


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"salticid {salticid.__version__}")
        raise typer.Exit


@app.callback(epilog="Example:  salticid ask photo.jpg 'What is in this photo?'")
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", envvar="SALTICID_DEBUG", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Small vision-language models on hardware that you own."""
    context.obj.debug = debug


def run() -> NoReturn:
    """The program: one command, then the end of the process.

    What was registered for the end is done, and threads are waited for; but a million objects of imported libraries are not taken apart one
    by one, which would take longer than an answer does.
    """
    session.OWN_PROCESS = True
    code = main()
    threading._shutdown()  # type: ignore[attr-defined]  # the interpreter's own wait, which first tells idle workers of pools to end
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody reads any more
            stream.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` is what follows the program's name."""
    _write_any_character()
    state = State()
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="salticid", standalone_mode=False, obj=state)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` for one, has what it wants; what is left must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as exit_:  # how typer itself treats a broken pipe
        return exit_.code if isinstance(exit_.code, int) else 1
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if state.debug:
            traceback.print_exc()
        line, code = _describe(error)
        print(f"error: {line}", file=sys.stderr)
        return code
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _describe(error: Exception) -> tuple[str, int]:
    """One line for people, and the exit code."""
    if isinstance(error, SalticidError):
        return _one_line(str(error)), error.exit_code
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # wrong usage, as typer reports it
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        return f"{_one_line(error.format_message()).rstrip('.')}{hint}", int(error.exit_code)
    return f"unexpected {type(error).__name__}: {_one_line(str(error))}; 'salticid --debug ...' shows where", UNEXPECTED


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _write_any_character() -> None:
    """A terminal that lacks a character shows a question mark, rather than ending the command."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
