"""Packing is only a way to compute: loss, gradients and what each token may see are those of separate rows."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoTokenizer

from salticid.checkpoints.load import load_model, load_processor
from salticid.data.collate import Collator, answer_weights, conversation_mask
from salticid.data.conversation import Example, Turn
from salticid.data.templates import get_template
from salticid.errors import ConfigurationError

CAPTION = (Turn("Describe the photo.", "a dog on the beach"),)
TALK = (Turn("What is in this photo?", "two red cups"), Turn("Is there a dog?", "no"))
YES = (Turn("Is it red?", "yes"),)
CAPTIONS = ((Turn("", "a dog on the beach"),), (Turn("", "two cups"),), (Turn("", "a dog"),))


def photo(shade: int) -> Image.Image:
    return Image.radial_gradient("L").convert("RGB").point([min(255, value * shade // 100) for value in range(256)] * 3)


@pytest.fixture(scope="module")
def processor(tiny_model_folder: Path) -> Any:
    return load_processor(tiny_model_folder)


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    return load_model(tiny_model_folder).double()  # what is left of differences is not rounding, whatever the processor


def collate(processor: Any, *examples: Example, template: str = "nano", **options: Any) -> dict[str, torch.Tensor]:
    return Collator(processor, get_template(template), **options)(examples)


def loss_and_gradients(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch, logits_for_labels_only=True, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


EXAMPLES = {
    "one photo": (Example((photo(50),), (CAPTION, TALK, YES)),),
    "several": (Example((photo(50),), (CAPTION, TALK)), Example((photo(90), photo(120)), (YES,)), Example((), (TALK, YES))),
    "text alone": (Example((), (CAPTION, TALK, YES)),),
}


@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("name", EXAMPLES)
def test_packed_equals_its_plain_twin(model: Any, processor: Any, name: str, weigh: bool) -> None:
    packed, plain = (collate(processor, *EXAMPLES[name], pack=pack, weigh_answers=weigh) for pack in (True, False))
    assert packed["input_ids"].shape[0] == len(EXAMPLES[name])
    assert plain["input_ids"].shape[0] == sum(len(example.conversations) for example in EXAMPLES[name])
    (loss, gradients), (twin_loss, twin_gradients) = loss_and_gradients(model, packed), loss_and_gradients(model, plain)
    assert_close(loss, twin_loss)
    assert gradients.keys() == twin_gradients.keys()
    for key, gradient in gradients.items():
        assert_close(gradient, twin_gradients[key], rtol=1e-4, atol=1e-5, msg=key)


def test_captions_without_a_question_are_learned_from_the_photo(model: Any, processor: Any) -> None:
    example = Example((photo(50),), CAPTIONS)
    packed, plain = (collate(processor, example, template="moe_llava_pretrain", pack=pack) for pack in (True, False))
    assert_close(loss_and_gradients(model, packed)[0], loss_and_gradients(model, plain)[0])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_conversations_do_not_see_each_other(model: Any, processor: Any, attention: str) -> None:
    """Other words in the middle conversation change its own logits and nothing else; another photo changes them all."""
    model.set_attn_implementation(attention)
    example = Example((photo(50),), (CAPTION, TALK, YES))
    batch = collate(processor, example)
    conversation = tokens_of(processor, example)
    before = model(**batch).logits[0]
    changed = {**batch, "input_ids": torch.where(conversation == 2, 40, batch["input_ids"])}
    after = model(**changed).logits[0]
    model.set_attn_implementation("sdpa")
    assert_close(after[conversation != 2], before[conversation != 2], rtol=0, atol=0)
    assert not torch.isclose(after[conversation == 2], before[conversation == 2]).all(dim=-1).any()
    other = model(**{**batch, "pixel_values": -batch["pixel_values"]}).logits[0]
    assert not torch.isclose(other[conversation > 0], before[conversation > 0]).all(dim=-1).any()


def tokens_of(processor: Any, example: Example) -> torch.Tensor:
    from salticid.data.tokenize import tokenize_example

    (tokens,) = tokenize_example(example, processor.tokenizer, get_template("nano"), processor.image_tokens)
    return torch.tensor(tokens.conversation)


def test_the_mask_by_hand() -> None:
    """Two words of prefix, conversations of two and one, two of padding."""
    mask = conversation_mask(torch.tensor([[0, 0, 1, 1, 2, -1, -1]]))
    assert mask.shape == (1, 1, 7, 7)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pack", [True, False])
def test_padding_is_no_number_to_worry_about(model: Any, processor: Any, pack: bool, attention: str) -> None:
    """The short row gives what it gives alone, and nothing is NaN."""
    model.set_attn_implementation(attention)
    short, long = Example((photo(50),), (YES,)), Example((photo(50),), (CAPTION, TALK))
    batch = collate(processor, short, long, pack=pack)
    outputs = model(**batch)
    alone = collate(processor, short, pack=pack)
    length = alone["input_ids"].shape[1]
    assert length < batch["input_ids"].shape[1]
    assert outputs.logits.isfinite().all()
    assert_close(outputs.logits[0, :length], model(**alone).logits[0], rtol=1e-4, atol=1e-5)
    assert all(gradient.isfinite().all() for gradient in loss_and_gradients(model, batch)[1].values())
    model.set_attn_implementation("sdpa")


def test_shapes_and_padding_values(processor: Any) -> None:
    batch = collate(processor, Example((photo(1), photo(2)), (YES,)), Example((photo(3),), (TALK, CAPTION)))
    rows, length = batch["input_ids"].shape
    assert (rows, batch["attention_mask"].shape, batch["pixel_values"].shape) == (2, (2, 1, length, length), (3, 3, 64, 64))
    assert batch["labels"].shape == batch["position_ids"].shape == (2, length)
    used = int((tokens_of(processor, Example((1, 2), (YES,))) >= 0).sum())
    assert (batch["input_ids"][0, used:] == processor.tokenizer.pad_token_id).all()
    assert (batch["labels"][0, used:] == -100).all()
    plain = collate(processor, Example((photo(1),), (YES, TALK)), pack=False)
    assert plain["pixel_values"].shape[0] == 2
    assert plain["attention_mask"].sum(dim=1).tolist()[1] == plain["input_ids"].shape[1]
    assert "pixel_values" not in collate(processor, Example((), (YES,)))
    assert "label_weights" not in batch


def test_each_answer_weighs_the_root_of_its_length() -> None:
    """Answers of 2, 1 and 4 tokens: 1 / sqrt(n) each, then scaled so that the seven labels weigh seven."""
    labels = torch.tensor([[-100, 5, 6, -100, 7, -100], [-100, 8, 8, 8, 8, -100]])
    total = 2 / math.sqrt(2) + 1 + 4 / 2
    two, one, four = (7 / total / math.sqrt(n) for n in (2, 1, 4))
    assert_close(answer_weights(labels), torch.tensor([[0, two, two, 0, one, 0], [0, four, four, four, four, 0]]))
    assert (answer_weights(torch.full((2, 3), -100)) == 0).all()
    assert_close(answer_weights(torch.tensor([[5, 6, -100]])), torch.tensor([[1.0, 1.0, 0.0]]))


def test_weights_of_a_batch_have_mean_one_over_its_labels(processor: Any) -> None:
    batch = collate(processor, Example((photo(50),), (CAPTION, TALK, YES)), weigh_answers=True)
    labelled = batch["labels"] != -100
    assert_close(batch["label_weights"][labelled].mean(), torch.tensor(1.0))
    assert (batch["label_weights"][~labelled] == 0).all()
    assert batch["label_weights"][labelled].unique().numel() > 1


def test_max_length_bounds_every_row(processor: Any) -> None:
    example = Example((photo(50),), (CAPTION, TALK, YES))
    whole = collate(processor, example)["input_ids"].shape[1]
    assert collate(processor, example, max_length=whole - 1)["input_ids"].shape[1] < whole


def test_padding_ids_inside_a_text_can_be_hidden(tokenizer_of_tinygpt_v: Any) -> None:
    """TinyGPT-V's upstream begins every later question with the token that is its padding, and so hides it."""
    processor = SimpleNamespace(tokenizer=tokenizer_of_tinygpt_v, image_tokens=2)
    turns = (Turn("what is this?", "a cat"), Turn("and what color?", "black"))
    examples = [Example((), (turns,)), Example((), (turns[:1],))]
    template = get_template("tinygpt_v_tasks_upstream")
    plain, hidden = (Collator(processor, template, pack=False, hide_padding_ids=hide)(examples) for hide in (False, True))
    begins = (plain["input_ids"] == tokenizer_of_tinygpt_v.pad_token_id) & (plain["attention_mask"] == 1)
    assert begins.sum(dim=1).tolist() == [2, 1]
    assert (plain["attention_mask"] - hidden["attention_mask"]).sum(dim=1).tolist() == [1, 0]
    assert hidden["attention_mask"][:, 0].tolist() == [1, 1]
    with pytest.raises(ConfigurationError, match="set pack to false"):
        Collator(processor, template, hide_padding_ids=True)


@pytest.fixture
def tokenizer_of_tinygpt_v(tiny_model_folder: Path) -> Any:
    tokenizer = load_processor(tiny_model_folder).tokenizer
    tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


def test_hidden_padding_is_upstreams(shared: Path) -> None:
    base = shared / "fixtures"
    tokenizer = AutoTokenizer.from_pretrained(base / "tinygptv_base/phi")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.pad_token = tokenizer.eos_token
    rows = (
        (Turn("what is this?", "a cat"), Turn("and what color? ", "black")),
        (Turn("describe", "a dog on the grass"), Turn("why? ", "it plays")),
    )
    processor = SimpleNamespace(tokenizer=tokenizer, image_tokens=8, image_processor=lambda photos, return_tensors: {"pixel_values": None})
    collate = Collator(processor, get_template("tinygpt_v_tasks_upstream"), pack=False, hide_padding_ids=True)
    mask = load_file(base / "tinygptv_stage4/outputs.safetensors")["conv.attention_mask"]
    assert (mask[:, 1:-1] == 0).any()
    torch.testing.assert_close(collate([Example(("photo",), (turns,)) for turns in rows])["attention_mask"], mask.long())
