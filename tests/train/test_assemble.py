"""A parts recipe to a folder that a first stage can start from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from salticid.checkpoints.load import load_model, load_processor, load_unpacked
from salticid.engine.catalog import find_model
from salticid.errors import CheckpointError, ConfigurationError, ModelNotFoundError
from salticid.models.photos import read_photo
from salticid.models.vision import LEAST_DEVIATION
from salticid.quant import quantize_folder
from salticid.train import assemble as assemble_module
from salticid.train.assemble import run_assemble
from salticid.train.data import build_sources
from salticid.train.recipe import PartsRecipe, StageRecipe
from salticid.train.stage import run_stage


@pytest.fixture
def recipe(tiny_model_folder: Path, data_folder: Path, tmp_path: Path) -> PartsRecipe:
    """Parts taken out of the tiny model: its language model and tower, saved on their own."""
    whole = load_model(tiny_model_folder)
    whole.language_model.save_pretrained(tmp_path / "language")
    load_processor(tiny_model_folder).tokenizer.save_pretrained(tmp_path / "language")
    whole.vision_tower.model.save_pretrained(tmp_path / "vision")
    vision = {"model_type": "efficientnet_lite", "width_coefficient": 0.25, "depth_coefficient": 0.5, "image_size": 64}
    return PartsRecipe.model_validate(
        {
            "output": tmp_path / "parts",
            "vision": vision,
            "vision_weights": tmp_path / "vision",
            "language": tmp_path / "language",
            "image": "efficientnet_lite",
            "connector": {"shuffle": 2, "norm": True},
            "model": {"vision_layers": [4, -1], "template": "nano"},
            "language_layers": [1],
            "first_merges": 3,
            "vocabulary_data": {
                "folder": data_folder,
                "sources": [{"kind": "flickr8k", "path": "flickr8k"}, {"kind": "daquar", "path": "daquar"}],
            },
        }
    )


def test_the_folder_is_whole_and_can_be_trained(recipe: PartsRecipe, stage_recipe: Callable[..., StageRecipe]) -> None:
    assert run_assemble(recipe) == recipe.output
    model, processor = load_model(recipe.output), load_processor(recipe.output)
    assert model.config.template == "nano"
    assert model.config.image_tokens == processor.image_tokens == 1
    assert model.config.text_config.num_hidden_layers == 1
    assert run_stage(stage_recipe(model=recipe.output, schedule__steps=1)).is_dir()


def test_the_words_of_the_data_keep_their_tokens(recipe: PartsRecipe) -> None:
    run_assemble(recipe)
    old, new = AutoTokenizer.from_pretrained(recipe.language), load_processor(recipe.output).tokenizer
    assert len(new) < len(old)
    for text in ("What is on the table?", "A dog number 12 runs on the beach.", "2", "lamp"):
        assert new.tokenize(text) == old.tokenize(text)


def test_a_run_that_is_cut_off_leaves_no_model(recipe: PartsRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    original = assemble_module.assemble

    def cut(parts: Any) -> Any:
        model, processor = original(parts)
        monkeypatch.setattr(type(processor), "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        return model, processor

    with monkeypatch.context() as patch:
        patch.setattr(assemble_module, "assemble", cut)
        with pytest.raises(KeyboardInterrupt):
            run_assemble(recipe)
    with pytest.raises(ModelNotFoundError):
        load_model(recipe.output)


def test_extra_normalisations_start_as_identities(recipe: PartsRecipe) -> None:
    norms = {"query": True, "key": True, "attention_output": True}
    run_assemble(recipe.model_copy(update={"model": {**recipe.model, "norms": norms}}))
    added = {name: weight for name, weight in load_model(recipe.output).named_parameters() if "_layernorm" in name and "self_attn" in name}
    assert len(added) == 5
    assert all(bool((weight == float(name.endswith("weight"))).all()) for name, weight in added.items())


def test_features_are_standardized_as_photos_of_the_data_show_them(recipe: PartsRecipe) -> None:
    recipe = recipe.model_copy(update={"model": {**recipe.model, "vision_standardized": True}})
    run_assemble(recipe)
    model, processor = load_model(recipe.output), load_processor(recipe.output)
    assert recipe.vocabulary_data is not None
    photos = [read_photo(s.example(i, 0).images[0]) for s in build_sources(recipe.vocabulary_data) for i in range(len(s))]
    with torch.inference_mode():
        features_IND = model.vision_tower(processor.image_processor(photos, return_tensors="pt")["pixel_values"])
    loud_D = model.vision_tower.feature_deviation > LEAST_DEVIATION
    assert loud_D.sum() > 10
    torch.testing.assert_close(features_IND.mean(dim=(0, 1)), torch.zeros(loud_D.shape), atol=1e-3, rtol=0)
    torch.testing.assert_close(features_IND.std(dim=(0, 1))[loud_D], torch.ones(int(loud_D.sum())), atol=1e-3, rtol=0)
    with pytest.raises(ConfigurationError, match="name some in vocabulary_data"):
        run_assemble(recipe.model_copy(update={"vocabulary_data": None, "language_layers": None, "first_merges": None}))


def test_parts_out_of_a_whole_model_with_small_weights(recipe: PartsRecipe, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Tower and language model are those of the folder, unpacked, and the connector is new."""
    small = tmp_path / "small"
    quantize_folder(tiny_model_folder, small, bits=8)
    whole = {"vision_weights": small, "language": small, "language_layers": None, "first_merges": None, "vocabulary_data": None}
    run_assemble(recipe.model_copy(update=whole))
    new, old = load_model(recipe.output).state_dict(), load_unpacked(small).state_dict()
    assert new.keys() == old.keys()
    taken = [name for name in old if not name.startswith("connector.")]
    assert [name for name in taken if not torch.equal(new[name], old[name])] == []
    assert not torch.equal(new["connector.layers.0.weight"], old["connector.layers.0.weight"])
    assert len(load_processor(recipe.output).tokenizer) == len(load_processor(tiny_model_folder).tokenizer)


def test_parts_out_of_an_embedded_model(tmp_path: Path) -> None:
    recipe = PartsRecipe.model_validate(
        {
            "output": tmp_path / "parts",
            "vision": {"model_type": "efficientnet_lite", "variant": "lite2", "image_size": 320},
            "vision_weights": "nano",
            "language": "nano",
            "language_layers": [0, 1],
            "image": "efficientnet_lite",
            "connector": {"pool": 5},
            "model": {"vision_layers": [4, -1], "template": "nano"},
        }
    )
    run_assemble(recipe)
    model, nano = load_model(recipe.output), load_unpacked(find_model("nano"))
    for name in ("vision_tower.model.head.conv.weight", "language_model.model.layers.1.mlp.up_proj.weight"):
        assert torch.equal(model.get_parameter(name), nano.get_parameter(name))


def test_a_whole_model_whose_parts_do_not_fit_is_refused(recipe: PartsRecipe, tiny_model_folder: Path, tmp_path: Path) -> None:
    norms = {"query": True, "key": True, "attention_output": True}
    run_assemble(recipe.model_copy(update={"output": tmp_path / "normed", "model": {**recipe.model, "norms": norms}}))
    with pytest.raises(ConfigurationError, match=r"the language model in .*normed has normalisations, experts or LoRA of its own"):
        run_assemble(recipe.model_copy(update={"language": tmp_path / "normed"}))
    with pytest.raises(CheckpointError, match="does not fit the vision tower efficientnet_lite"):
        run_assemble(recipe.model_copy(update={"vision": {**recipe.vision, "width_coefficient": 0.5}, "vision_weights": tiny_model_folder}))
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_model_folder, damaged)
    (damaged / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated, damaged"):
        run_assemble(recipe.model_copy(update={"vision_weights": damaged}))
    assert not recipe.output.exists()
