"""A parts recipe to a folder that a first stage can start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from salticid.checkpoints.load import load_model, load_processor
from salticid.errors import ModelNotFoundError
from salticid.train import assemble as assemble_module
from salticid.train.assemble import run_assemble
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
