"""Which weights learn in each stage of the published systems: upstream's own lists, name by name."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from salticid.checkpoints.moe_llava import convert_moe_llava, key_table
from salticid.checkpoints.tinygpt_v_files import whole_name
from salticid.checkpoints.tinygpt_v_keys import key_tables
from salticid.models import VisionLanguageConfig, VisionLanguageModel
from salticid.train.adapt import add_lora, divide
from salticid.train.freezing import freeze_except, learning_parameters
from salticid.train.recipe import LoraRecipe, StageRecipe, read_recipe

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
VISION_LAYERS = 3
FAMILIES = {"phi": "moe_llava_phi2", "stablelm": "moe_llava_stablelm", "qwen": "moe_llava_qwen"}


@cache
def recorded(name: str) -> Any:
    return json.loads((GOLDENS / name).read_text())


def tinygpt_v() -> VisionLanguageModel:
    """TinyGPT-V with as many layers as the model that upstream's names were recorded from."""
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = VisionLanguageConfig(
        vision_config={"model_type": "blip_2_vision_model", **sizes, "num_hidden_layers": VISION_LAYERS, "image_size": 8, "patch_size": 4},
        connector_config={
            "kind": "qformer",
            "queries": 2,
            "depth": 2,
            "hidden_size": 8,
            "activation": None,
            "qformer_config": {**sizes, "num_hidden_layers": 4, "encoder_hidden_size": 16, "cross_attention_frequency": 2},
        },
        text_config={"model_type": "phi", "vocab_size": 16, **sizes, "num_hidden_layers": 3},
        vision_keep_cls=True,
        norms={"query": True, "key": True, "attention_output": True},
    )
    return VisionLanguageModel(config)


def names(model: VisionLanguageModel) -> set[str]:
    return {name.replace(".base_layer.", ".").replace(".default.weight", ".weight") for name in learning_parameters(model)}


def test_tinygpt_v() -> None:
    table = key_tables(VISION_LAYERS)["checkpoint"]
    model = tinygpt_v()
    for stage in (1, 2, 3, 4):
        recipe = read_recipe(RECIPES / f"tinygpt_v/stage{stage}.yaml", StageRecipe, ["lora.rank=2"] if stage == 1 else [])
        if recipe.lora is not None:
            add_lora(model, recipe.lora)
        freeze_except(model, recipe.train)
        upstream = recorded("trainable_names.json")["tinygpt_v"]["stage_4" if stage == 4 else "stages_1_to_3"]
        assert names(model) == set(table.plan([whole_name(name) for name in upstream]))
    rates = {part.learning_rate for part in recipe.train.values()}
    assert rates == {8e-5}


@pytest.mark.parametrize("backbone", FAMILIES)
def test_moe_llava(backbone: str) -> None:
    keys = recorded("moe_llava_keys.json")
    tensors = {name: torch.zeros(shape) for name, shape in keys[backbone]["dense"].items()}
    conversion = convert_moe_llava(dict(keys[backbone]["config"]["dense"]), tensors, 509, tower=keys["tower"])
    model = VisionLanguageModel(conversion.config)
    first, second, third = (
        read_recipe(RECIPES / FAMILIES[backbone] / f"{stage}.yaml", StageRecipe) for stage in ("1_pretrain", "2_instruct", "3_experts")
    )
    freeze_except(model, first.train)
    assert names(model) == {name for name, _ in model.named_parameters() if name.startswith("connector.")}
    freeze_except(model, second.train)
    frozen = {name for name, _ in model.named_parameters()} - names(model)
    assert {name for name in frozen if not name.startswith("vision_tower.")} == (
        {"language_model.lm_head.bias"} if backbone == "phi" else set()
    )
    assert third.experts is not None
    divide(model, third.experts, seed=0)
    freeze_except(model, third.train)
    assert names(model) == set(key_table(backbone).plan(recorded("trainable_names.json")["moe_llava_stage_3"][backbone]))


def test_lora_beside_experts_and_attention() -> None:
    keys = recorded("moe_llava_keys.json")
    tensors = {name: torch.zeros(shape) for name, shape in keys["phi"]["dense"].items()}
    model = VisionLanguageModel(convert_moe_llava(dict(keys["phi"]["config"]["dense"]), tensors, 509, tower=keys["tower"]).config)
    third, fourth = (read_recipe(RECIPES / "moe_llava_phi2" / f"{stage}.yaml", StageRecipe) for stage in ("3_experts", "4_continue"))
    assert third.experts is not None
    divide(model, third.experts, seed=0)
    add_lora(model, LoraRecipe.model_validate({**(fourth.lora.model_dump() if fourth.lora else {}), "rank": 2}))
    freeze_except(model, fourth.train)
    learning = {name for name in names(model) if name.startswith("language_model.")}
    assert all(".lora_A" in name or ".lora_B" in name for name in learning)
    assert {name.split(".")[6] for name in learning if ".mlp." in name} == {"parametrizations"}
    assert {name.split(".")[5] for name in learning if ".self_attn." in name} == {"q_proj", "k_proj", "v_proj"}
