"""The model as a whole: every mixture of parts, and parity with transformers' own models."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from salticid.errors import InputError
from salticid.models import VisionLanguageModel

LANGUAGES = ("llama", "phi", "stablelm", "qwen2", "qwen3", "mistral", "gemma", "gemma2")
CONNECTORS = ("linear", "mlp2x_gelu", "shuffle", "pool", "qformer")
# What a tower has and an image token never passes through: its classifier or pooler, and CLIP's norm of the pooled class token.
UNUSED = {"clip": "post_layernorm", "siglip": "head", "eva": None, "efficientnet": "classifier"}
PATCHES = "model.embeddings.patch_embedding.weight"
EXPERTS = {"experts": 3, "top_k": 2, "layers": "all", "aux_loss_coef": 0.1}


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def mixtures() -> Iterator[Any]:
    """All of them; by default as many as let each part meet each other part once."""
    for (row, connector), (column, language), (place, tower) in product(enumerate(CONNECTORS), enumerate(LANGUAGES), enumerate(UNUSED)):
        yield pytest.param(tower, connector, language, marks=() if (row + column) % len(UNUSED) == place else pytest.mark.slow)


@pytest.mark.parametrize(("tower", "connector", "language"), list(mixtures()))
def test_every_mixture_of_parts_trains(tiny: Any, tower: str, connector: str, language: str) -> None:
    model = tiny.model(tower, connector, language).train()
    batch = tiny.batch(model.config, photos=(1, 2), words=(6, 5))
    outputs = model(**batch)
    assert outputs.logits.shape == (*batch["input_ids"].shape, tiny.vocabulary)
    assert outputs.image_hidden_states.shape == (3, model.config.image_tokens, model.config.text_config.hidden_size)
    outputs.loss.backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unused == {name for name, _ in model.named_parameters() if name.startswith(f"vision_tower.model.{UNUSED[tower]}")}
    for name, gradient in gradients_of(model).items():
        assert gradient.isfinite().all(), name
        exact_zero = name.endswith(("k_proj.bias", "key.bias")) or "qkv.bias" in name  # softmax does not see a bias on keys
        assert exact_zero or gradient.abs().sum() > 0, name


# ---- the language model is transformers' own, from head to tail


@pytest.mark.parametrize("language", LANGUAGES)
def test_text_alone_is_the_language_model(tiny: Any, language: str) -> None:
    model = tiny.model("clip", "linear", language)
    ids = torch.tensor([tiny.words(7)])
    ours = model(input_ids=ids, labels=ids)
    theirs = model.language_model(input_ids=ids, labels=ids)
    assert_close(ours.logits, theirs.logits, rtol=0, atol=0)
    assert_close(ours.loss, theirs.loss)
    assert ours.image_hidden_states is None


# ---- parity with transformers' published architectures on equal weights


@pytest.fixture(scope="module")
def llava(tiny: Any) -> tuple[VisionLanguageModel, LlavaForConditionalGeneration]:
    ours = tiny.model("clip", "mlp2x_gelu", "llama", vision_layers=[-2])
    config = LlavaConfig(
        vision_config=ours.config.vision_config.to_dict(),
        text_config=ours.config.text_config.to_dict(),
        image_token_index=tiny.image_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    theirs = LlavaForConditionalGeneration(config).eval()
    names = {
        "vision_tower.model.": "model.vision_tower.",
        "connector.layers.0.": "model.multi_modal_projector.linear_1.",
        "connector.layers.2.": "model.multi_modal_projector.linear_2.",
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
    }
    state = {}
    for name, weight in ours.state_dict().items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        state[names[prefix] + name.removeprefix(prefix)] = weight
    theirs.load_state_dict(state, strict=True)
    return ours, theirs


def test_llava_logits_loss_and_gradients_are_transformers(tiny: Any, llava: Any) -> None:
    ours, theirs = llava
    batch = tiny.batch(ours.config, photos=(1, 2, 0), words=(6, 5, 4))
    mine, other = ours(**batch), theirs(**batch)
    real = batch["attention_mask"].bool()
    assert_close(mine.logits[real], other.logits[real])
    assert_close(mine.loss, other.loss)
    mine.loss.backward()
    other.loss.backward()
    projector = theirs.model.multi_modal_projector
    assert_close(ours.connector.layers[0].weight.grad, projector.linear_1.weight.grad)
    assert_close(
        ours.vision_tower.model.embeddings.patch_embedding.weight.grad, theirs.model.vision_tower.embeddings.patch_embedding.weight.grad
    )
    assert_close(ours.get_input_embeddings().weight.grad, theirs.get_input_embeddings().weight.grad)
    ours.zero_grad()


def test_llava_generates_the_same_words(tiny: Any, llava: Any) -> None:
    ours, theirs = llava
    batch = tiny.batch(ours.config, photos=(1, 1), words=(6, 4))
    del batch["labels"]
    options = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [tiny.image_id]}
    assert ours.generate(**batch, **options).tolist() == theirs.generate(**batch, **options).tolist()


def test_qformer_reads_a_photo_as_blip2_does(tiny: Any) -> None:
    ours = tiny.model("eva", "qformer", "llama", vision_keep_cls=True)
    ours.connector.layers = torch.nn.Linear(16, 24)
    text = {
        "model_type": "opt",
        "hidden_size": 24,
        "ffn_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 24,
    }
    config = Blip2Config(
        vision_config=ours.config.vision_config.to_dict(),
        qformer_config=ours.config.connector_config.qformer_config.to_dict(),
        text_config={**text, "vocab_size": 64, "word_embed_proj_dim": 24},
        num_query_tokens=3,
    )
    theirs = Blip2ForConditionalGeneration(config).eval()
    theirs.vision_model.load_state_dict(ours.vision_tower.model.state_dict())
    theirs.vision_model.post_layernorm.eps = ours.vision_tower.model.post_layernorm.eps
    theirs.qformer.load_state_dict(ours.connector.qformer.state_dict())
    theirs.language_projection.load_state_dict(ours.connector.layers.state_dict())
    theirs.query_tokens.data.copy_(ours.connector.query_tokens.data)
    photos = tiny.photos(ours.config, 3)
    assert_close(ours.get_image_features(photos), theirs.get_image_features(photos).pooler_output)
    with torch.no_grad():  # the last norm and the queries are part of what is read
        for weight in (ours.vision_tower.model.post_layernorm.bias, ours.connector.query_tokens):
            before = ours.get_image_features(photos)
            weight.add_(torch.randn_like(weight))
            assert not torch.allclose(ours.get_image_features(photos), before)


# ---- batches


def test_photos_stand_at_their_own_rows(tiny: Any) -> None:
    """Rows with 2, 0 and 1 photos, padded on the left, give what each gives alone. Three rows: no tuple is taken for a tensor."""
    model = tiny.model("siglip", "shuffle", "qwen2")
    batch = tiny.batch(model.config, photos=(2, 0, 1), words=(6, 3, 8))
    together = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], pixel_values=batch["pixel_values"]).logits
    first = 0
    for row, photos in enumerate((2, 0, 1)):
        real = batch["attention_mask"][row].bool()
        own = batch["pixel_values"][first : first + photos] if photos else None
        first += photos
        alone = model(input_ids=batch["input_ids"][row : row + 1, real], pixel_values=own).logits
        assert_close(together[row, real], alone[0])


def test_each_photo_and_its_order_matter(tiny: Any) -> None:
    model = tiny.model()
    batch = tiny.batch(model.config, photos=(2,), words=(6,))
    logits = model(**batch).logits[0, -1]
    swapped = model(**{**batch, "pixel_values": batch["pixel_values"].flip(0)}).logits[0, -1]
    assert not torch.allclose(logits, swapped)


def test_image_features_are_used_again(tiny: Any) -> None:
    model = tiny.model("efficientnet", "mlp2x_gelu", "llama")
    batch = tiny.batch(model.config, photos=(2, 1), words=(5, 5))
    pixels = batch.pop("pixel_values")
    features, seen = model.get_image_features(pixels), model.vision_tower(pixels)
    assert features.shape == (3, model.config.image_tokens, 24)
    for known in ({"image_features": features}, {"vision_features": seen}):
        assert_close(model(**batch, **known).logits, model(**batch, pixel_values=pixels).logits)
    del batch["labels"]
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    for known in ({"image_features": features}, {"vision_features": seen}):
        assert model.generate(**batch, **known, **options).equal(model.generate(**batch, pixel_values=pixels, **options))


def test_inputs_embeds_stand_for_ids(tiny: Any) -> None:
    model = tiny.model()
    batch = tiny.batch(model.config)
    words = model.get_input_embeddings()(batch["input_ids"])
    assert_close(model(**batch, inputs_embeds=words).logits, model(**batch).logits)
    ids = batch["input_ids"]
    merged = words.masked_scatter((ids == tiny.image_id)[..., None], model.get_image_features(batch["pixel_values"]))
    assert_close(model(inputs_embeds=merged).logits, model(**batch).logits)
    written = model.generate(inputs_embeds=merged, max_new_tokens=4, do_sample=False)
    assert (
        written.tolist()
        == model.generate(input_ids=ids, pixel_values=batch["pixel_values"], max_new_tokens=4, do_sample=False)[:, -4:].tolist()
    )


def test_what_cannot_be_meant_is_refused(tiny: Any) -> None:
    model = tiny.model()
    batch = tiny.batch(model.config, photos=(1,))
    tokens = model.config.image_tokens
    with pytest.raises(InputError, match=f"{tokens} image placeholders but the photos give {2 * tokens} image tokens"):
        model(**{**batch, "pixel_values": tiny.photos(model.config, 2)})
    with pytest.raises(InputError, match=f"{tokens} image placeholders but the photos give 0"):
        model(input_ids=batch["input_ids"])
    with pytest.raises(InputError, match="input_ids are missing"):
        model(inputs_embeds=torch.zeros(1, 5, 24), pixel_values=batch["pixel_values"])
    with pytest.raises(InputError, match="input_ids are missing"):
        model(pixel_values=batch["pixel_values"])
    with pytest.raises(InputError, match=f"{tokens} image placeholders but the photos give {2 * tokens}"):
        model.generate(input_ids=batch["input_ids"], pixel_values=tiny.photos(model.config, 2), num_beams=2, max_new_tokens=2)
    with pytest.raises(InputError, match=r"\(1, 3, 20, 20\).*\(photos, 3, 16, 16\)"):
        model(**{**batch, "pixel_values": torch.zeros(1, 3, 20, 20)})


# ---- logits and loss


def test_logits_to_keep(tiny: Any) -> None:
    model = tiny.model()
    batch = tiny.batch(model.config, photos=(1, 0), words=(5, 7))
    everything = model(**batch)
    last = model(**batch, logits_to_keep=4)
    assert last.logits.shape[1] == 4
    assert_close(last.logits, everything.logits[:, -4:])
    assert_close(last.loss, everything.loss)  # all labels lie among the last three
    places = torch.tensor([2, 5])
    assert_close(model(**batch, logits_to_keep=places).logits, everything.logits[:, places])


def test_the_head_on_labelled_tokens_alone_gives_the_same_loss_and_gradients(tiny: Any) -> None:
    model = tiny.model("clip", "qformer", "gemma2")
    batch = tiny.batch(model.config, photos=(1, 2), words=(6, 5))
    weights = torch.rand(batch["labels"].shape) + 0.5
    results = []
    for only in (False, True):
        model.zero_grad()
        outputs = model(**batch, label_weights=weights, logits_for_labels_only=only)
        outputs.loss.backward()
        results.append((outputs, gradients_of(model)))
    (everything, gradients), (labelled, gradients_labelled) = results
    assert labelled.logits.shape == (6, tiny.vocabulary)
    assert_close(labelled.loss, everything.loss)
    assert gradients.keys() == gradients_labelled.keys()
    for name, gradient in gradients.items():
        assert_close(gradients_labelled[name], gradient, msg=name)


def test_loss_by_hand(tiny: Any) -> None:
    """Token t predicts label t + 1; weights go with labels; the sum is divided by all accumulated labels."""
    model = tiny.model()
    batch = tiny.batch(model.config, photos=(1, 0), words=(5, 7))
    logits = model(**batch).logits
    weights = torch.rand(batch["labels"].shape)
    by_hand = []
    for row, column in (batch["labels"] != -100).nonzero().tolist():
        chosen = logits[row, column - 1].log_softmax(-1)[batch["labels"][row, column]]
        by_hand.append((-chosen, weights[row, column]))
    plain = torch.stack([loss for loss, _ in by_hand])
    weighed = torch.stack([loss * weight for loss, weight in by_hand])
    assert len(by_hand) == 6
    assert_close(model(**batch).loss, plain.mean())
    assert_close(model(**batch, label_weights=weights).loss, weighed.mean())
    assert_close(model(**batch, num_items_in_batch=10).loss, plain.sum() / 10)
    assert_close(model(**batch, label_weights=weights, num_items_in_batch=torch.tensor(10)).loss, weighed.sum() / 10)


@pytest.mark.parametrize("only", [False, True])
def test_no_label_is_no_loss_and_no_nan(tiny: Any, only: bool) -> None:
    model = tiny.model()
    batch = tiny.batch(model.config)
    loss = model(**{**batch, "labels": torch.full_like(batch["labels"], -100)}, logits_for_labels_only=only).loss
    loss.backward()
    assert loss == 0
    assert all(gradient.isfinite().all() for gradient in gradients_of(model).values())


# ---- experts


def test_experts_by_configuration(tiny: Any, tmp_path: Path) -> None:
    model = tiny.model("clip", "pool", "phi", experts=EXPERTS).train()
    batch = tiny.batch(model.config, photos=(1, 1), words=(6, 5))
    outputs = model(**batch)
    assert len(outputs.router_logits) == 2
    words = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert outputs.aux_loss > 0
    assert_close(outputs.loss, words + outputs.aux_loss)
    outputs.loss.backward()
    for name, gradient in gradients_of(model).items():
        assert gradient.isfinite().all(), name
    assert model.language_model.model.layers[0].mlp.router.wg.weight.grad.abs().sum() > 0
    model.eval().save_pretrained(tmp_path)
    again = VisionLanguageModel.from_pretrained(tmp_path)
    assert again.config.experts == EXPERTS
    assert_close(again(**batch).logits, model(**batch).logits, rtol=0, atol=0)
    del batch["labels"]
    assert again.generate(**batch, max_new_tokens=3, do_sample=False).equal(model.generate(**batch, max_new_tokens=3, do_sample=False))


def test_the_experts_loss_is_counted_once_over_accumulated_batches(tiny: Any) -> None:
    model = tiny.model("clip", "pool", "llama", experts=EXPERTS)
    batch = tiny.batch(model.config, photos=(1,), words=(6,))
    whole = model(**batch)
    assert_close(model(**batch, num_items_in_batch=3).loss, whole.loss)  # three labels, all in this batch
    halves = [model(**batch, num_items_in_batch=6).loss for _ in range(2)]
    assert_close(sum(halves), whole.loss)
