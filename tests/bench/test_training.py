"""What training takes, beside what autograd really keeps."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from salticid.bench.memory import meta_model
from salticid.bench.report import training_table, training_values
from salticid.bench.subject import Subject, random_model
from salticid.bench.training import STAGES, Stage, Training, counting_saved, training_memory
from salticid.errors import InputError
from salticid.models import VisionLanguageConfig

WHOLE = Stage("all", {"language_model": None}, tokens=64, answer=8)


def small(experts: dict[str, object] | None = None, layers: int = 3) -> VisionLanguageConfig:
    text = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": layers, "num_attention_heads": 4}
    return VisionLanguageConfig(
        vision_config={"model_type": "efficientnet_lite", "width_coefficient": 0.25, "depth_coefficient": 0.25, "image_size": 32},
        text_config=text | {"num_key_value_heads": 2, "vocab_size": 96},
        experts=experts,
    )


@pytest.mark.parametrize("experts", [None, {"experts": 4, "top_k": 2, "layers": "alternate"}])
@pytest.mark.parametrize("learns", [{"language_model": None}, {"language_model": (r"mlp\.",)}, {"language_model": (r"self_attn\.q_proj",)}])
def test_layers_keep_what_the_whole_model_keeps(experts: dict[str, object] | None, learns: dict[str, tuple[str, ...] | None]) -> None:
    config, stage = small(experts), dataclasses.replace(WHOLE, learns=learns)
    model = random_model(config, torch.bfloat16).train().requires_grad_(False)
    for name, parameter in model.language_model.named_parameters():
        parameter.requires_grad_(any(re.search(pattern, name) for pattern in learns["language_model"] or ("",)))
    words = torch.randn(1, 64, 64, dtype=torch.bfloat16, requires_grad=True)
    with counting_saved(model) as saved:
        model.language_model.base_model(inputs_embeds=words, use_cache=False)
    head = stage.answer * 96 * 10
    assert training_memory(config, stage).example - head == pytest.approx(sum(saved.values()), rel=0.1)


def test_less_is_kept_when_less_learns_and_when_checkpointed() -> None:
    whole = training_memory(small(), WHOLE)
    part = training_memory(small(), dataclasses.replace(WHOLE, learns={"language_model": (r"input_layernorm",)}))
    assert part.example < whole.example
    assert part.learning == 3 * 64
    assert whole.example_checkpointed < whole.example
    assert training_memory(small(layers=6), WHOLE).example > 1.8 * whole.example - 8 * 96 * 10


def test_sums() -> None:
    config = small()
    total = sum(parameter.numel() for parameter in meta_model(config, torch.float32).parameters())
    found = training_memory(config, dataclasses.replace(WHOLE, learns={"connector": None}))
    assert found.weights == 2 * (total - found.learning) + 4 * found.learning
    assert (found.gradients, found.optimizer, found.copies) == (4 * found.learning, 8 * found.learning, 2 * found.learning)
    assert found.fixed == found.weights + 14 * found.learning


def test_lora_counts_its_factors() -> None:
    plain = dataclasses.replace(WHOLE, learns={"connector": None})
    adapted = dataclasses.replace(plain, lora=(r"self_attn\.(q|v)_proj$",), rank=8)
    more = training_memory(small(), adapted).learning - training_memory(small(), plain).learning
    assert more == 3 * 8 * ((64 + 64) + (64 + 32))


def test_batches() -> None:
    training = Training("x", 1, weights=10, gradients=4, optimizer=8, copies=2, example=20, example_checkpointed=5)
    assert [training.batch(100, checkpointed) for checkpointed in (False, True)] == [3, 15]
    assert training.batch(20, True) == 0
    (values,) = training_values([training], 100)
    assert values["batch"] == 3
    assert "| none | none |" in training_table([training], 20)


def test_every_published_stage_names_parameters_that_exist() -> None:
    for shape, stages in STAGES.items():
        config = Subject(shape=shape, layers=2).config()
        model = meta_model(config, torch.float32)
        for stage in stages:
            for part, patterns in stage.learns.items():
                names = [name for name, _ in getattr(model, part).named_parameters()]
                for pattern in patterns or ():
                    assert any(re.search(pattern, name) for name in names), (shape, stage.name, pattern)


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(InputError, match=r"all: no parameter of the language_model matches 'experts'; see model.language_model.named"):
        training_memory(small(), dataclasses.replace(WHOLE, learns={"language_model": ("experts",)}))


def test_weights_are_no_activations() -> None:
    layer = torch.nn.Linear(8, 4)
    x = torch.randn(3, 8, requires_grad=True)
    with counting_saved(layer) as saved:
        layer(x).sum()
    assert list(saved.values()) == [x.nbytes]
