from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import salticid
from salticid.cli.main import app

VERBS = (
    "ask",
    "caption",
    "chat",
    "locate",
    "models",
    "env",
    "train",
    "assemble",
    "quantize",
    "upcycle",
    "merge",
    "phrases",
    "export",
    "eval",
    "retrieval",
)
GROUPS = ("convert", "bench", "data")

# Runs a command in a fresh interpreter and then says which heavy packages it has imported.
PROBE = """
import sys
from salticid.cli.main import main
code = main(sys.argv[1:])
print("HEAVY:", [name for name in ("torch", "transformers", "numpy", "PIL", "huggingface_hub") if name in sys.modules])
sys.exit(code)
"""


def fresh(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, check=False)


def test_every_verb_has_help_with_an_example(run: Any) -> None:
    assert [command.name or command.callback.__name__ for command in app.registered_commands if command.callback] == list(VERBS)
    assert [group.name for group in app.registered_groups] == list(GROUPS)
    for verb in VERBS:
        result = run(verb, "--help")
        assert result.code == 0
        assert f"salticid {verb}" in result.out.split("Example:")[1]


def test_help_without_arguments(run: Any) -> None:
    bare = run()
    assert bare == run("--help")
    assert bare.code == 0
    assert all(verb in bare.out for verb in (*VERBS, *GROUPS))


def test_version(run: Any) -> None:
    assert run("--version") == (0, f"salticid {salticid.__version__}\n", "")


def test_help_and_quick_refusals_load_nothing_heavy() -> None:
    for arguments, code in ((["--help"], 0), (["ask", "--help"], 0), (["ask", "no-such-photo.jpg", "What?"], 2)):
        result = fresh("-c", PROBE, *arguments)
        assert result.returncode == code
        assert "HEAVY: []" in result.stdout


def test_python_m_salticid() -> None:
    result = fresh("-m", "salticid", "ask", "no-such-photo.jpg", "What?")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: no such photo: 'no-such-photo.jpg'; check the path\n"


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "salticid", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode != 0


@pytest.mark.slow
def test_a_real_ctrl_c(tiny_model_folder: Path) -> None:
    import signal

    photo = Path(__file__).resolve().parents[2] / "examples" / "photos" / "cat.jpg"
    command = [sys.executable, "-m", "salticid", "ask", str(photo), "What?", "--model", str(tiny_model_folder), "--max-new-tokens", "240"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert err == "interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize(("verb", "code"), [("models", 0), ("no-such-verb", 2)])
def test_the_program_does_what_was_left_for_its_end(verb: str, code: int) -> None:
    lines = [
        "import atexit, sys, threading, time",
        "from salticid.cli.main import run",
        "atexit.register(print, 'registered for the end')",
        "threading.Thread(target=lambda: (time.sleep(0.2), print('a thread'))).start()",
        f"sys.argv = ['salticid', {verb!r}]",
        "run()",
    ]
    done = fresh("-c", "\n".join(lines))
    assert done.returncode == code
    assert "a thread" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1] == "registered for the end"


def test_the_program_ends_though_a_pool_of_threads_is_left_idle() -> None:
    lines = [
        "import sys",
        "from concurrent.futures import ThreadPoolExecutor",
        "from salticid.cli.main import run",
        "pool = ThreadPoolExecutor(2)",  # as torch.compile leaves one behind
        "pool.submit(int).result()",
        "sys.argv = ['salticid', '--version']",
        "run()",
    ]
    assert fresh("-c", "\n".join(lines)).returncode == 0
