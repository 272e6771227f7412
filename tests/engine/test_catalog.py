from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from salticid.checkpoints.load import load_model
from salticid.engine import catalog
from salticid.engine.catalog import EMBEDDED, EmbeddedModel, find_model, model_cards, read_card
from salticid.errors import CheckpointError, ModelNotFoundError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub, and no way to reach it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_in_cache(hub: Path, name: str, model: Path) -> Path:
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(model, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return snapshot


@pytest.fixture
def embedded(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny model, under a name of its own."""
    monkeypatch.setitem(EMBEDDED, "tiny", EmbeddedModel(str(tiny_model_folder), "MIT", "random words"))
    return "tiny"


def test_an_embedded_name_wins_over_a_folder(
    embedded: str, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert find_model(embedded) == tiny_model_folder
    assert find_model("./tiny").resolve() == tmp_path / "tiny"


def test_nano_lies_in_the_package() -> None:
    assert EMBEDDED["nano"].path.relative_to(Path(catalog.__file__).parents[1]) == Path("assets/nano")
    assert EMBEDDED["nano"].licence == "non-commercial"  # Flickr8k's and NYU Depth's photos are


def test_an_embedded_model_that_was_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(EMBEDDED, "tiny", EmbeddedModel(str(tmp_path), "MIT", ""))
    with pytest.raises(ModelNotFoundError, match="'tiny' is not in this installation; reinstall"):
        find_model("tiny")


@pytest.mark.parametrize("name", ["nanno", "", "/no/such/folder/at/all", "./runs/none", "a b/c"])
def test_unknown_names_list_what_there_is(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model .*; give an embedded model \(nano\), a model folder, or a Hub id owner/name"):
        find_model(name)


def test_a_file_is_no_model(tiny_model_folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is a file, not a folder"):
        find_model(tiny_model_folder / "config.json")


def test_a_hub_id_without_network(hub: Path) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"no model 'owner/name'.*cannot be reached.*connect to the network, or use an embedded"
    ) as caught:
        find_model("owner/name")
    assert "\n" not in str(caught.value)


def test_a_hub_id_in_the_cache_needs_no_network(hub: Path, tiny_model_folder: Path) -> None:
    snapshot = put_in_cache(hub, "owner/name", tiny_model_folder)
    assert find_model("owner/name") == snapshot


def test_a_hub_id_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> str:
        response = SimpleNamespace(headers={}, request=None, status_code=404)
        raise huggingface_hub.errors.RepositoryNotFoundError("404\n\nlong text", response=response)  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    with pytest.raises(ModelNotFoundError, match=r"none on the Hugging Face Hub for you; check the name, or run 'hf auth login'$"):
        find_model("owner/name")


@pytest.mark.parametrize(("kind", "weights"), [("salticid", True), ("llava", False)])
def test_weights_of_a_foreign_model_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, weights: bool) -> None:
    patterns: list[str] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        patterns.extend(allow_patterns)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model("owner/name") == tmp_path
    assert ("*.safetensors" in patterns) is weights


def test_cards_of_embedded_and_cached_models(hub: Path, embedded: str, tiny_model_folder: Path) -> None:
    snapshot = put_in_cache(hub, "owner/name", tiny_model_folder)
    (snapshot / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    other = tiny_model_folder.parent / "other"
    other.mkdir(exist_ok=True)
    (other / "config.json").write_text(json.dumps({"model_type": "llama"}))
    put_in_cache(hub, "owner/other", other)
    cards = {card.name: card for card in model_cards() if card.name != "nano"}
    assert list(cards) == ["tiny", "owner/name"]
    assert (cards["tiny"].licence, cards["tiny"].description) == ("MIT", "random words")
    assert cards["owner/name"].licence == "apache-2.0"


def test_no_cache_at_all(hub: Path) -> None:
    assert [card.name for card in model_cards() if card.name != "nano"] == []


def test_numbers_of_a_card(tiny_model_folder: Path) -> None:
    model = load_model(tiny_model_folder)
    buffers = sum(
        tensor.numel() for name, tensor in model.state_dict().items() if name not in dict(model.named_parameters(remove_duplicate=False))
    )
    card = read_card("tiny", tiny_model_folder)
    assert card.parameters == card.active == sum(parameter.numel() for parameter in model.parameters()) + buffers
    assert card.size == sum(path.stat().st_size for path in tiny_model_folder.iterdir())
    assert card.weights == "f32"


def test_experts_that_rest_are_not_active(tmp_path: Path) -> None:
    layer = "language_model.model.layers.0.mlp"
    save_file(
        {
            f"{layer}.experts.gate_up_proj": torch.zeros(4, 6, 5),
            f"{layer}.experts.down_proj": torch.zeros(4, 5, 3),
            f"{layer}.router.wg.weight": torch.zeros(4, 5),
            f"{layer}.q.weight": torch.zeros(8, 5, dtype=torch.int8),
            f"{layer}.q.scale": torch.zeros(8),
        },
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "salticid", "experts": {"experts": 4, "top_k": 1}}))
    card = read_card("moe", tmp_path)
    assert card.parameters == 4 * 45 + 20 + 40
    assert card.active == 45 + 20 + 40


def test_packed_weights_count_twice_and_their_scales_never(tmp_path: Path) -> None:
    layer = "language_model.model.layers.0.mlp"
    save_file(
        {
            f"{layer}.experts.up_proj": torch.zeros(4, 2, 64, 32, dtype=torch.uint8),
            f"{layer}.experts.up_proj_scale_zero": torch.zeros(4, 1, 128, 2),
            f"{layer}.experts.up_proj_input_scale": torch.zeros(4, 64),
            f"{layer}.q.weight": torch.zeros(1, 64, 32, dtype=torch.uint8),
            f"{layer}.q.scale_zero": torch.zeros(1, 64, 2),
        },
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "salticid", "experts": {"experts": 4, "top_k": 1}}))
    card = read_card("moe", tmp_path)
    assert (card.parameters, card.active, card.weights) == (4 * 128 * 64 + 64 * 64, 128 * 64 + 64 * 64, "i4")


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
        read_card("bad", tmp_path)
