"""The stages of both published systems in their order, from the recipes themselves, on tiny random models."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from salticid.checkpoints.load import load_config, load_model, load_processor
from salticid.checkpoints.lora import read_lora
from salticid.models import SalticidImageProcessor, VisionLanguageConfig, VisionLanguageModel, VisionLanguageProcessor
from salticid.train.recipe import StageRecipe, read_recipe
from salticid.train.stage import run_stage

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
QUICK = ["precision=fp32", "frozen_precision=fp32", "data.workers=0", "log_steps=1", "data.max_length=400"]
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def folder_of(model: VisionLanguageModel, image: str, tokenizer: Any, folder: Path) -> Path:
    """A model folder as assembling or converting would leave it."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    config = model.config
    image_processor = SalticidImageProcessor.from_preset(image, size=config.vision_config.image_size)
    VisionLanguageProcessor(image_processor, tokenizer, image_tokens=config.image_tokens).save_pretrained(folder)
    return folder


def text_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "model_type": "phi",
        **SIZES,
        "vocab_size": len(tokenizer),
        "bos_token_id": 0,
        "eos_token_id": 0,
        "max_position_embeddings": 512,
    }


@pytest.fixture
def tinygpt_v(tiny_model_folder: Path, tmp_path: Path) -> Path:
    tokenizer = load_processor(tiny_model_folder).tokenizer
    config = VisionLanguageConfig(
        vision_config={"model_type": "blip_2_vision_model", **SIZES, "image_size": 16, "patch_size": 8},
        connector_config={
            "kind": "qformer",
            "queries": 2,
            "depth": 2,
            "hidden_size": 20,
            "activation": None,
            "qformer_config": {**SIZES, "encoder_hidden_size": 16, "cross_attention_frequency": 2},
        },
        text_config=text_config(tokenizer),
        vision_keep_cls=True,
        norms={"query": True, "key": True, "attention_output": True},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    return folder_of(VisionLanguageModel(config), "blip2", tokenizer, tmp_path / "parts")


@pytest.fixture
def moe_llava(tiny_model_folder: Path, tmp_path: Path) -> Path:
    tokenizer = load_processor(tiny_model_folder).tokenizer
    config = VisionLanguageConfig(
        vision_config={"model_type": "clip_vision_model", **SIZES, "image_size": 16, "patch_size": 8},
        connector_config={"depth": 2, "activation": "gelu"},
        text_config=text_config(tokenizer),
        vision_layers=[-2],
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    return folder_of(VisionLanguageModel(config), "clip", tokenizer, tmp_path / "parts")


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    """Rows in LLaVA's format, every third of them text alone."""
    folder, rows = tmp_path / "mine", []
    (folder / "images").mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (20, 12), ("red", "green", "blue")[number % 3]).save(folder / f"images/{number}.png")
        said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"A thing, number {number}."}]
        row = {"image": f"{number}.png", "conversations": said}
        if number % 3 == 2:
            said[0]["value"] = "What is two plus two?"
            del row["image"]
        rows.append(row)
    (folder / "with_photos.json").write_text(json.dumps([row for row in rows if "image" in row]))
    (folder / "train.json").write_text(json.dumps(rows))
    return folder


def run(recipe: str, model: Path, output: Path, overrides: Sequence[str]) -> StageRecipe:
    stage = read_recipe(RECIPES / recipe, StageRecipe, [f"model={model}", f"output={output}", *QUICK, *overrides])
    assert run_stage(stage) == output
    told = json.loads((output / "training.json").read_text())
    assert math.isfinite(told["loss"])
    assert told["loss"] > 0
    return stage


def everything(folder: Path) -> dict[str, torch.Tensor]:
    factors, _ = read_lora(folder)
    return load_file(folder / "model.safetensors") | factors


def moved(before: Path, after: Path) -> set[str]:
    """Names of the weights that differ; of new ones too."""
    old, new = everything(before), everything(after)
    return {name for name in old.keys() | new.keys() if name not in old or name not in new or not torch.equal(old[name], new[name])}


def matches(name: str, stage: StageRecipe) -> bool:
    part, _, rest = name.partition(".")
    if part not in stage.train:
        return False
    only = stage.train[part].only  # type: ignore[index]
    return only is None or any(re.search(pattern, rest) for pattern in only)


def test_tinygpt_v_in_four_stages(tinygpt_v: Path, data_folder: Path, tmp_path: Path) -> None:
    bare = "{kind: photo_tasks, path: flickr8k, options: {reader: flickr8k, tasks: [bare]}}"
    asked = "{kind: photo_tasks, path: flickr8k, options: {reader: flickr8k, tasks: [caption]}}"
    boxes = "{kind: photo_tasks, path: coco, options: {reader: coco, tasks: [refer, identify, detection]}}"
    rates = ["train.connector.learning_rate=1e-2", "train.language_model.learning_rate=1e-2"]
    schedule = "schedule={steps: 3, batch_size: 2, warmup_steps: 1, warmup_lr: 1.0e-3, min_lr: 1.0e-3}"
    before = tinygpt_v
    for stage, sources in enumerate((bare, bare, asked, f"{asked}, {boxes}"), start=1):
        overrides = [f"data.folder={data_folder}", f"data.sources=[{sources}]", schedule, *rates]
        overrides += ["lora.rank=2"] if stage == 1 else ["photos.size=32"] if stage == 4 else []
        after = tmp_path / f"stage{stage}"
        recipe = run(f"tinygpt_v/stage{stage}.yaml", before, after, overrides)
        changed = moved(before, after) - {"vision_tower.model.embeddings.position_embedding"}
        if stage == 1:
            assert {name for name in changed if ".lora_" in name}
        assert changed
        assert all(matches(name, recipe) for name in changed)
        assert any(name.startswith("connector.layers.") for name in changed)
        assert any(".self_attn.q_layernorm.weight" in name for name in changed)
        assert any(name.startswith("connector.qformer.") for name in changed) == (stage == 4)
        before = after
    config, factors = load_config(before), everything(before)
    assert (config.template, config.vision_config.image_size) == ("tinygpt_v_tasks", 32)
    first = "language_model.model.layers.0.self_attn.{}_proj.lora_A.weight"
    assert torch.equal(factors[first.format("q")], factors[first.format("k")])
    assert load_processor(before).image_processor.size == 32


def test_upstreams_way_of_stage_4(tinygpt_v: Path, data_folder: Path, tmp_path: Path) -> None:
    """The rate that rises, and the prompt whose inner beginnings of text are hidden."""
    overrides = [
        f"data.folder={data_folder}",
        "data.sources=[{kind: flickr8k, path: flickr8k}]",
        "schedule={steps: 2, batch_size: 2, warmup_steps: 1, min_lr: 8.0e-5, decay: lavis}",
        "train={connector: {learning_rate: 1.0e-5}}",
        "template=tinygpt_v_tasks_upstream",
        "data.hide_padding_ids=true",
    ]
    recipe = run("tinygpt_v/stage4.yaml", tinygpt_v, tmp_path / "stage4", overrides)
    assert recipe.schedule.min_lr > recipe.train["connector"].learning_rate
    assert load_config(tmp_path / "stage4").template == "tinygpt_v_tasks_upstream"


def test_moe_llava_in_four_stages(moe_llava: Path, conversations: Path, tmp_path: Path) -> None:
    captions = "[{kind: llava, path: ., options: {annotations: with_photos.json, images: images, questions: false}}]"
    talk = "[{kind: llava, path: ., options: {annotations: train.json, images: images}}]"
    before = moe_llava
    for number, stage in enumerate(("1_pretrain", "2_instruct", "3_experts", "4_continue"), start=1):
        overrides = [
            f"data.folder={conversations}",
            f"data.sources={captions if number == 1 else talk}",
            "schedule.batch_size=2",
            "schedule.accumulate=2",
            "train.connector.learning_rate=1e-3",
        ]
        overrides += ["lora.rank=2"] if number == 4 else []
        after = tmp_path / stage
        recipe = run(f"moe_llava_phi2/{stage}.yaml", before, after, overrides)
        assert json.loads((after / "training.json").read_text())["steps"] == (2 if number == 1 else 3)
        changed = moved(before, after)
        assert any(name.startswith("connector.") for name in changed)
        if number == 4:  # merged: no factors, but the weights that they stood beside have moved
            assert not [name for name in everything(after) if "lora" in name]
            inside = {name for name in changed if name.startswith("language_model.")}
            assert {name for name in inside if re.search(r"\.mlp\.experts\.(up|down)_proj$", name)}
            assert all(re.search(r"\.mlp\.experts\.(up|down)_proj$|\.self_attn\.[qkv]_proj\.weight$", name) for name in inside)
        elif number == 3:
            assert all(name.startswith("connector.") or ".mlp." in name for name in changed)
            assert any(".mlp.router.wg." in name for name in changed)
        else:
            assert all(matches(name, recipe) for name in changed)
            assert "language_model.lm_head.bias" not in changed
        before = after
    model = load_model(before)
    assert model.experts is not None
    assert model.experts.experts_per_layer(2) == {0: 4}
    assert model.config.template == "moe_llava"
    assert load_processor(before).image_processor.mode == "pad"


def test_half_precision_that_needs_a_gpu_says_so(tinygpt_v: Path, tmp_path: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is one")
    recipe = read_recipe(RECIPES / "tinygpt_v/stage1.yaml", StageRecipe, [f"model={tinygpt_v}", f"output={tmp_path / 'out'}"])
    with pytest.raises(ValueError, match=r"precision fp16 .* needs a GPU; set precision to auto, bf16 or fp32"):
        run_stage(recipe)
    assert not (tmp_path / "out").exists()
