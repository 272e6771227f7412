"""Prompts and instructions of TinyGPT-V, letter by letter as upstream writes them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from salticid.data.conversation import Turn
from salticid.data.tasks import ASKED, POOLS, QUESTION_POOL, identifier, instruction
from salticid.data.templates import PHI_BOS, TEMPLATES, get_template
from salticid.errors import ConfigurationError

GOLDEN: dict[str, Any] = json.loads((Path(__file__).resolve().parents[1] / "goldens/tinygpt_v_prompts.json").read_text())
FIRST, SECOND = Turn("what is this?", ""), Turn("what color?", "")


def prompt(template: str, turns: list[Turn], images: int = 1) -> str:
    return get_template(template).prompt(turns, images).replace("<image>", "<ImageHere>")


@pytest.mark.parametrize("name", GOLDEN["prompts"])
def test_prompts_of_upstreams_demos_and_scorers(name: str) -> None:
    assert prompt(name, [FIRST]) == GOLDEN["prompts"][name]["turn1"]
    assert prompt(name, [Turn("what is this?", "a cat"), SECOND]) == GOLDEN["prompts"][name]["turn2"]


def test_prepared_texts() -> None:
    texts = [prompt("tinygpt_v_eval", [Turn(question, "")]) for question in GOLDEN["prepare_texts"]["in"]]
    assert texts == GOLDEN["prepare_texts"]["out"]


def test_training_prompts_start_with_the_token_that_training_saw() -> None:
    assert prompt("tinygpt_v_caption", [Turn("", "a dog")]) == PHI_BOS + "<ImageHere>a dog\n"
    described = prompt("tinygpt_v_describe", [Turn("Describe this image in detail.", "A dog.")])
    assert described == PHI_BOS + "###Human: <Img><ImageHere></Img> Describe this image in detail. ###Assistant: A dog.###"
    # Upstream's data sets put a space behind an instruction about a photo, and its template another.
    assert prompt("tinygpt_v_tasks", [FIRST]) == PHI_BOS + "[INST] <Img><ImageHere></Img> what is this?  [/INST]"
    assert prompt("tinygpt_v_tasks", [FIRST], images=0) == PHI_BOS + "[INST] what is this? [/INST]"


def test_upstreams_accident_between_turns_has_a_name() -> None:
    turns = [Turn("what is this?", "a cat"), SECOND]
    ours, upstreams = prompt("tinygpt_v_tasks", turns), prompt("tinygpt_v_tasks_upstream", turns)
    assert upstreams.count(PHI_BOS) == 2
    assert upstreams.replace("###" + PHI_BOS, "###") == ours


def test_recorded_prompts_are_whole(shared: Path) -> None:
    recorded = json.loads((shared / "fixtures/tinygptv_prompts/prompts.json").read_text())
    ours = [prompt(name, [FIRST]) for name in TEMPLATES if name.startswith("tinygpt_v_")]
    known = {identifier(task) + " " + form for task, pool in POOLS.items() for form in pool} | set(QUESTION_POOL)
    for name, turns in recorded["prompts"].items():
        assert name == "prepare_texts" or turns["turn1"] in ours
    for name, pool in recorded["instruction_templates"].items():
        if name.endswith("Dataset") and "Eval" not in name:
            assert all(form in known or f"[caption] {form}" in known for form in pool), name


@pytest.mark.parametrize("task", GOLDEN["pools"])
def test_instruction_pools(task: str) -> None:
    assert [f"{identifier(task)} {form}" for form in POOLS[task]] == GOLDEN["pools"][task]
    assert POOLS.keys() == GOLDEN["pools"].keys() == ASKED.keys()
    assert list(QUESTION_POOL) == GOLDEN["questions"]


def test_instructions_are_fixed_or_drawn() -> None:
    assert instruction("refer", "the red ball") == "[refer] give me the location of the red ball"
    assert instruction("caption") == "[caption] please describe this image?"
    drawn = {instruction("refer", "a {} dog", random.Random(seed)) for seed in range(60)}
    assert drawn == {"[refer] " + form.replace("{}", "a {} dog") for form in POOLS["refer"]}
    assert instruction("vqa", "why?", random.Random(3)) == instruction("vqa", "why?", random.Random(3))


def test_wrong_tasks_are_named() -> None:
    with pytest.raises(ConfigurationError, match="known: vqa, caption, grounding"):
        instruction("paint", "it")
    with pytest.raises(ConfigurationError, match="needs a text"):
        instruction("refer")
