"""Which models are at hand: embedded ones by name, folders, and the local cache of the Hugging Face Hub. Loads no torch."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from salticid.errors import CheckpointError, ModelNotFoundError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MODEL_TYPE = "salticid"
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.md", "LICENSE*")
SCALE = re.compile(r"[._](scale|scale_zero|input_scale)$")  # of small weights: no parameters of the model
PACKED = {"U8": "I4"}  # two weights in four bits per byte
EXPERT_WEIGHT = re.compile(r"\.experts\.[a-z_]+$")


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model that comes with the package: its folder below `salticid/assets`, and the card that users see."""

    folder: str
    licence: str
    description: str

    @property
    def path(self) -> Path:
        return Path(str(files("salticid"))) / "assets" / self.folder


EMBEDDED: dict[str, EmbeddedModel] = {
    "nano": EmbeddedModel(
        folder="nano",
        licence="non-commercial",
        description="EfficientNet-Lite2 and a pruned SmolLM2: captions, short answers, yes/no, and 'I don't know'",
    ),
}


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a model without loading it. `active` parameters are those that one token uses; `size` is in bytes."""

    name: str
    folder: str
    size: int
    parameters: int
    active: int
    weights: str
    licence: str
    description: str


def find_model(model: str | os.PathLike[str]) -> Path:
    """The folder of a model.

    Args:
        model: a name in `EMBEDDED`, a folder, or a Hub id `owner/name`, which is downloaded to the local cache unless it is there.

    Raises:
        ModelNotFoundError: none of them; or the Hub cannot be reached and its cache lacks the model.
    """
    name = os.fspath(model)
    if name in EMBEDDED:
        return _embedded_folder(name)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return _download(name)
    what = f"{name} is a file, not a folder" if folder.is_file() else f"no model {name!r}"
    raise ModelNotFoundError(f"{what}; give an embedded model ({', '.join(EMBEDDED)}), a model folder, or a Hub id owner/name")


def find_part(source: str | os.PathLike[str]) -> Path:
    """Where a pretrained part lies: in the folder of an embedded model, if `source` names one, or else at `source` itself."""
    name = os.fspath(source)
    return _embedded_folder(name) if name in EMBEDDED else Path(source)


def model_cards() -> Iterator[ModelCard]:
    """Cards of the embedded models, then of Salticid models in the Hub's local cache. Models that are incomplete are left out."""
    for name, embedded in EMBEDDED.items():
        if _is_complete(embedded.path):
            yield read_card(name, embedded.path, embedded.licence, embedded.description)
    for name, folder in _cached_models():
        if _is_complete(folder):
            yield read_card(name, folder, _licence(folder), "in the local cache of the Hugging Face Hub")


def read_card(name: str, folder: Path, licence: str = "unknown", description: str = "") -> ModelCard:
    """Read a model folder's card from its configuration and the headers of its weights.

    Raises:
        CheckpointError: a weights file is damaged.
    """
    tensors = {key: entry for path in sorted(folder.glob("*.safetensors")) for key, entry in _tensors(path).items()}
    counts = {key: _parameters(entry) for key, entry in tensors.items() if not SCALE.search(key)}
    parameters = sum(counts.values())
    idle = sum(_idle(key, tensors[key]["shape"][0], counts[key], _top_k(folder)) for key in counts if tensors[key]["shape"])
    by_dtype = {dtype: sum(counts[key] for key in counts if tensors[key]["dtype"] == dtype) for dtype in _dtypes(tensors)}
    return ModelCard(
        name=name,
        folder=str(folder),
        size=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        parameters=parameters,
        active=parameters - idle,
        weights=PACKED.get(most := max(by_dtype, key=lambda dtype: by_dtype[dtype], default="none"), most).lower(),
        licence=licence,
        description=description,
    )


def _embedded_folder(name: str) -> Path:
    folder = EMBEDDED[name].path
    if not _is_complete(folder):
        raise ModelNotFoundError(
            f"the embedded model {name!r} is not in this installation; reinstall salticid, or give --model a folder or a Hub id"
        )
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    missing = f"no model {name!r}: there is no such folder here, and"
    try:
        folder = Path(snapshot_download(name, allow_patterns=["config.json"]))
        if _config(folder).get("model_type") != MODEL_TYPE:
            return folder  # its loader says what it is; gigabytes of it would be of no use
        return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
    except RepositoryNotFoundError:
        raise ModelNotFoundError(f"{missing} none on the Hugging Face Hub for you; check the name, or run 'hf auth login'") from None
    except Exception as error:  # a network fails in many ways, and each library names them differently
        raise ModelNotFoundError(
            f"{missing} the Hugging Face Hub cannot be reached ({type(error).__name__}), nor is the model in its local cache; "
            f"connect to the network, or use an embedded model ({', '.join(EMBEDDED)}) or a folder"
        ) from None


def _cached_models() -> Iterator[tuple[str, Path]]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        newest = max(repository.revisions, key=lambda revision: revision.last_modified, default=None)
        if repository.repo_type == "model" and newest is not None:
            yield repository.repo_id, newest.snapshot_path


def _is_complete(folder: Path) -> bool:
    return _config(folder).get("model_type") == MODEL_TYPE and any(folder.glob("*.safetensors"))


def _config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _tensors(path: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file: eight bytes of length, then JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (OSError, ValueError, struct.error, MemoryError, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file; copy or download it again") from error
    return {key: entry for key, entry in header.items() if key != "__metadata__"}


def _dtypes(tensors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return sorted({str(entry["dtype"]) for entry in tensors.values()})


def _top_k(folder: Path) -> int | None:
    experts = _config(folder).get("experts")
    return int(experts.get("top_k", 2)) if isinstance(experts, dict) else None


def _parameters(entry: Mapping[str, Any]) -> int:
    """A byte of packed weights holds two; rows that fill up a tile count too."""
    return math.prod(entry["shape"]) * (2 if entry["dtype"] in PACKED else 1)


def _idle(name: str, experts: int, parameters: int, top_k: int | None) -> int:
    """Parameters of a tensor of stacked experts (E, ...) that one token leaves alone."""
    if top_k is None or not EXPERT_WEIGHT.search(name):
        return 0
    return max(0, experts - top_k) * parameters // experts


def _licence(folder: Path) -> str:
    """The licence that a model card names in its front matter."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "unknown"
    found = re.search(r"\A---\n.*?^license:\s*(\S+)", text, re.DOTALL | re.MULTILINE)
    return found[1] if found else "unknown"
