"""Who can be measured, by name. Each file imports its package when the runner is made, not before."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple, cast

from salticid.bench.speed import Runner
from salticid.errors import InputError, MissingExtraError
from salticid.models import VisionLanguageModel


class Peer(NamedTuple):
    """A runner's file here, the modules it needs and what pip calls them; `packages` are named in the table's head."""

    file: str
    modules: tuple[str, ...]
    install: str
    packages: tuple[str, ...]


PEERS: dict[str, Peer] = {
    "transformers": Peer("transformers_generate", ("transformers",), "transformers", ()),
    "openvino": Peer("openvino_decoder", ("openvino", "nncf"), "openvino nncf", ("openvino", "nncf")),
    "llama.cpp": Peer("llama_cpp_gguf", ("llama_cpp", "gguf"), "llama-cpp-python gguf", ("llama-cpp-python",)),
}


def check_peer(name: str) -> Peer:
    """Raises `InputError` for an unknown peer, `MissingExtraError` for one that is not installed, with the command that does it."""
    if name not in PEERS:
        raise InputError(f"unknown peer {name!r}; known: {', '.join(PEERS)}")
    peer = PEERS[name]
    if missing := [module for module in peer.modules if find_spec(module) is None]:
        raise MissingExtraError(f"the peer {name} needs {', '.join(missing)}, not installed here; run: pip install {peer.install}")
    return peer


def make_peer(name: str, plain: VisionLanguageModel, precision: str, threads: int) -> Runner:
    """A runner of the language model of `plain`, weights in that precision.

    Raises:
        InputError: unknown, or the peer has no form for such a model; MissingExtraError: not installed.
    """
    module = import_module(f"{__name__}.{check_peer(name).file}")
    return cast(Callable[[VisionLanguageModel, str, int], Runner], module.make_runner)(plain, precision, threads)
