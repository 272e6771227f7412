"""Models to measure: which weights they have, and what one token reads of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from salticid.bench.bandwidth import read_bandwidth
from salticid.bench.machine import describe_machine, head
from salticid.bench.prompt import check_room, random_prompt
from salticid.bench.subject import Subject, weights_read
from salticid.errors import ConfigurationError, InputError
from salticid.models import VisionLanguageModel

SMALL = Subject(shape="nano", layers=1)


@pytest.fixture(scope="module")
def small() -> VisionLanguageModel:
    return SMALL.build("fp32")


def test_random_weights_are_the_same_each_time_and_of_use(small: VisionLanguageModel) -> None:
    again = SMALL.build("fp32")
    assert all(torch.equal(one, other) for one, other in zip(small.state_dict().values(), again.state_dict().values(), strict=True))
    rows = small.get_input_embeddings().weight
    assert len(rows[:200].unique(dim=0)) == 200
    logits = small(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.01


def test_what_one_token_reads(small: VisionLanguageModel) -> None:
    language = sum(parameter.nbytes for parameter in small.language_model.parameters())
    buffers = sum(buffer.nbytes for buffer in small.language_model.buffers())
    assert weights_read(small) == language + buffers  # the table is the head's too
    small_again = SMALL.build("int8")
    assert weights_read(small_again) < 0.3 * language


def test_experts_that_no_token_visits_are_not_read() -> None:
    def read(experts: int, top_k: int) -> int:
        config = SMALL.config()
        values = config.to_dict() | {"experts": {"experts": experts, "top_k": top_k, "layers": "all"}, "tie_word_embeddings": False}
        with torch.device("meta"):
            return weights_read(VisionLanguageModel(type(config)(**values)))

    network = 3 * 576 * 1536 * 4
    router = 576 * 4
    assert read(4, 2) - read(4, 1) == network
    assert read(4, 2) - read(2, 2) == 2 * router


def test_an_untied_table_is_read_by_the_row() -> None:
    with torch.device("meta"):
        model = VisionLanguageModel(Subject(shape="phi-2", layers=1).config())
    table = model.get_input_embeddings().weight
    every = sum(tensor.nbytes for tensor in (*model.language_model.parameters(), *model.language_model.buffers()))
    assert weights_read(model) == every - table.nbytes + table[0].nbytes


def test_models_with_weights(tiny_model_folder: Path) -> None:
    subject = Subject(model=str(tiny_model_folder))
    assert subject.config().template == "nano"
    assert subject.build("fp32").dtype == torch.float32
    assert subject.build_plain("int8").dtype == torch.bfloat16
    assert subject.name == str(tiny_model_folder)
    assert SMALL.name == "nano (random weights, 1 layers)"


def test_prompts() -> None:
    config = SMALL.config()
    config.image_token_id, config.text_config.vocab_size = 3, 8
    prompt = random_prompt(config, 500)
    assert prompt == random_prompt(config, 500)
    assert len(prompt) == 500
    assert set(prompt) == {0, 1, 2, 4, 5, 6, 7}
    with pytest.raises(InputError, match="more than the 8192 that the model reads"):
        check_room(config, 8192, 1)


def test_bandwidth_and_machine() -> None:
    ticks = iter(range(1000))
    assert read_bandwidth(size=1 << 16, passes=2, clock=lambda: next(ticks) * 0.5) == 2 * (1 << 16)
    facts = describe_machine(["pytest", "no-such-package"])
    assert facts["no-such-package"] == "not installed"
    assert f"{facts['threads']} threads" in head(facts)
    assert "pytest " in head(facts)


def test_refusals() -> None:
    for values in ({}, {"model": "nano", "shape": "nano"}):
        with pytest.raises(InputError, match="give either a model or --shape"):
            Subject(**values)
    with pytest.raises(InputError, match="--words is for a --shape"):
        Subject(model="nano", words=4)
    with pytest.raises(InputError, match="words have 8 or 4 bits, not 5"):
        Subject(shape="phi-2", words=5)
    with pytest.raises(InputError, match="--layers shortens a --shape"):
        Subject(model="nano", layers=2)
    with pytest.raises(InputError, match="unknown precision 'fp7'; known: fp32"):
        SMALL.build("fp7")
    with pytest.raises(ConfigurationError, match="unknown shape 'phi-9'; known: phi-2"):
        Subject(shape="phi-9").config()


def test_words_in_four_bits() -> None:
    subject = Subject(shape="nano", layers=1, words=4)
    assert subject.name == "nano (random weights, 1 layers, words in 4 bits)"
    model = subject.build("int4")
    assert type(model.get_input_embeddings()).__name__ == "Int4Embedding"
    assert type(Subject(shape="nano", layers=1).build("int4").get_input_embeddings()).__name__ == "Int8Embedding"
