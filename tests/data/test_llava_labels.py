"""MoE-LLaVA's prompts, and the labels that its training script makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from salticid.checkpoints.load import load_processor
from salticid.data.collate import Collator
from salticid.data.conversation import Example, Turn
from salticid.data.llava_labels import llava_labels, tokenize_as_llava
from salticid.data.templates import get_template
from salticid.data.tokenize import IGNORE_INDEX, tokenize_example
from salticid.errors import ConfigurationError, DataError

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TURNS = [Turn("What is in the picture?", "A cat."), Turn("What color is it?", "Black.")]
TEMPLATES = {  # upstream's versions
    "phi": "moe_llava",
    "stablelm": "moe_llava",
    "qwen": "moe_llava",
    "openchat": "moe_llava_openchat",
    "mistral": "moe_llava_mistral",
    "v1": "moe_llava_mistral",
}


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    """A byte-level tokenizer whose padding ends no answer."""
    tokenizer = load_processor(tiny_model_folder).tokenizer
    tokenizer.pad_token = "<|im_start|>"
    return tokenizer


def learned(tokenizer: Any, ids: list[int], labels: list[int]) -> str:
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True))
    return tokenizer.decode([label for label in labels if label != IGNORE_INDEX])


@pytest.mark.parametrize(
    ("name", "end"), [("moe_llava", "<|endoftext|>"), ("moe_llava_openchat", "<|end_of_turn|>"), ("moe_llava_mistral", "</s>")]
)
def test_prompts(name: str, end: str) -> None:
    template = get_template(name)
    start = f"{SYSTEM} USER: <image>\nWhat is in the picture? ASSISTANT: A cat.{end}USER: What color is it? ASSISTANT:"
    assert template.prompt([TURNS[0], Turn(TURNS[1].question, "")], images=1) == start
    assert template.prompt(TURNS, images=1) == f"{start} Black.{end}"
    assert template.prompt([Turn("Hello", "Hi.")]) == f"{SYSTEM} USER: Hello ASSISTANT: Hi.{end}"
    assert template.prompt([Turn("Why?", "")], images=2) == f"{SYSTEM} USER: <image>\n<image>\nWhy? ASSISTANT:"


@pytest.mark.parametrize("images", [0, 1])
def test_answers_and_their_ends_are_learned(tokenizer: Any, images: int) -> None:
    template = get_template("moe_llava")
    ids, labels = llava_labels(template.prompt(TURNS, images), tokenizer, template, "phi")
    assert learned(tokenizer, ids, labels) == " A cat.<|endoftext|> Black.<|endoftext|>"
    ours = tokenize_example(Example(("photo",) * images, (tuple(TURNS),)), tokenizer, template, image_tokens=1)[0]
    assert (ours.ids, ours.labels) == (ids, labels)


def test_a_caption_is_learned_whole(tokenizer: Any) -> None:
    template = get_template("moe_llava_pretrain")
    ids, labels = llava_labels(template.prompt([Turn("", "A cat.")], 1), tokenizer, template, "plain")
    assert ids[0] == tokenizer.convert_tokens_to_ids("<image>")
    assert labels[0] == IGNORE_INDEX
    assert learned(tokenizer, ids, labels) == "A cat.\n"


def test_what_upstream_loses(tokenizer: Any) -> None:
    template = get_template("moe_llava")
    inside = [Turn("Why?", "Ask: ASSISTANT: yes."), *TURNS]
    assert set(llava_labels(template.prompt(inside), tokenizer, template, "phi")[1]) == {IGNORE_INDEX}
    tokenizer.pad_token = "<|endoftext|>"
    assert set(llava_labels(template.prompt(TURNS), tokenizer, template, "phi")[1]) == {IGNORE_INDEX}
    tokenizer.model_max_length = 5  # what is too long is not counted
    ids, labels = llava_labels(template.prompt(TURNS), tokenizer, template, "phi")
    assert learned(tokenizer, ids, labels) == " A cat.<|endoftext|> Black.<|endoftext|>"


def test_photos_are_widened_and_the_end_is_cut(tokenizer: Any) -> None:
    template = get_template("moe_llava")
    example = Example(("photo",), (tuple(TURNS), tuple(TURNS[:1])))
    first, second = tokenize_as_llava(example, tokenizer, template, image_tokens=4, rule="phi")
    assert first.ids.count(tokenizer.convert_tokens_to_ids("<image>")) == 4
    assert len(first.ids) == len(first.labels) == len(first.positions)
    assert len(second.ids) < len(first.ids)
    cut = tokenize_as_llava(example, tokenizer, template, 4, "phi", max_length=len(first.ids) - 3)[0]
    assert (cut.ids, cut.labels) == (first.ids[:-3], first.labels[:-3])
    place = first.ids.index(tokenizer.convert_tokens_to_ids("<image>"))
    with pytest.raises(DataError, match="cuts a photo of 4 tokens"):
        tokenize_as_llava(example, tokenizer, template, 4, "phi", max_length=place + 2)


def test_the_collator_takes_the_rule_by_name(tiny_model_folder: Path) -> None:
    processor, template = load_processor(tiny_model_folder), get_template("moe_llava")
    example = Example((), (tuple(TURNS), tuple(TURNS[:1])))
    batch = Collator(processor, template, pack=False, label_rule="phi")([example])
    ids, labels = llava_labels(template.prompt(TURNS), processor.tokenizer, template, "phi")
    assert batch["input_ids"][0].tolist() == ids
    assert batch["labels"][0].tolist() == labels
    assert batch["attention_mask"].sum(1).tolist()[0] == len(ids)
    with pytest.raises(ConfigurationError, match="set pack to false"):
        Collator(processor, template, label_rule="phi")


def test_an_unknown_rule_lists_the_known_ones(tokenizer: Any) -> None:
    with pytest.raises(ConfigurationError, match="phi, v1, plain"):
        llava_labels("", tokenizer, get_template("moe_llava"), "mpt")


# ---- against what upstream recorded


@pytest.fixture
def prompts(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "fixtures" / "moellava_prompts" / "prompts.json").read_text())


@pytest.fixture
def upstream_tokenizer(shared: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(shared / "fixtures" / "tinygptv_base" / "phi")
    tokenizer.add_special_tokens({"pad_token": "<|extra_0|>"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def marked(ids: list[int], tokenizer: Any) -> list[int]:
    return [-200 if token == tokenizer.convert_tokens_to_ids("<image>") else token for token in ids]


@pytest.mark.parametrize("version", TEMPLATES)
def test_recorded_prompts(prompts: dict[str, Any], upstream_tokenizer: Any, version: str) -> None:
    template, recorded = get_template(TEMPLATES[version]), prompts[version]
    asked = [TURNS[0], Turn(TURNS[1].question, "")]
    assert template.prompt(asked, 1) == recorded["inference_2_turns"]
    assert template.prompt(TURNS, 1) == recorded["training_2_turns"]
    if "tiny_ids_inference" in recorded:
        ids = upstream_tokenizer(template.prompt(asked, 1))["input_ids"]
        assert marked(ids, upstream_tokenizer) == recorded["tiny_ids_inference"]
        assert tokenize_example(Example(("photo",), (tuple(asked),)), upstream_tokenizer, template, 1)[0].ids == ids


@pytest.mark.parametrize("case", ["phi", "stablelm", "phi_text_only", "plain"])
def test_recorded_labels(prompts: dict[str, Any], upstream_tokenizer: Any, case: str) -> None:
    recorded = prompts["train_preprocess"]["results"][case]
    said = (recorded.get("sources") or recorded.get("after_preprocess_multimodal"))[0]
    turns = [Turn(question["value"], answer["value"]) for question, answer in zip(said[::2], said[1::2], strict=True)]
    template = get_template("moe_llava_pretrain" if case == "plain" else "moe_llava")
    ids, labels = llava_labels(template.prompt(turns), upstream_tokenizer, template, "plain" if case == "plain" else "phi")
    assert marked(ids, upstream_tokenizer) == recorded["input_ids"]
    assert labels == recorded["labels"]
