"""Who may see whom under each of the three objectives, token by token; what each loss is; what learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from salticid.errors import ConfigurationError, InputError
from salticid.models.qformer import QFormerPretrainingConfig, QFormerPretrainingModel
from salticid.models.qformer.losses import contrastive_loss, same_photo
from salticid.models.qformer.pretraining import multimodal_causal_mask

Batch = dict[str, torch.Tensor]
LENGTHS = (7, 5, 6)


def arguments(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return batch["image_features"], batch["input_ids"], batch["attention_mask"]


def other_word(batch: Batch, row: int, token: int) -> Batch:
    """The same batch with another word at one place."""
    ids = batch["input_ids"].clone()
    ids[row, token] = 3 + (ids[row, token] - 3 + 1) % 20
    return {**batch, "input_ids": ids}


def moved(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Places (B, T) whose vector differs."""
    return (before - after).abs().amax(dim=-1) > 1e-6


@pytest.fixture(params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, qformer: QFormerPretrainingModel) -> QFormerPretrainingModel:
    """With either implementation of attention."""
    qformer.qformer.set_attn_implementation(request.param)
    assert qformer.qformer.encoder.layer[0].attention.attention.config._attn_implementation == request.param
    return qformer


# ---- contrastive: two encoders that know nothing of each other


@torch.no_grad()
def test_contrastive_text_sees_all_text_but_padding(model: QFormerPretrainingModel, batch: Batch) -> None:
    _, ids, mask = arguments(batch)
    before = model.embed_texts(ids, mask)
    for token in range(7):
        changed = other_word(batch, 1, token)
        after = model.embed_texts(changed["input_ids"], mask)
        assert moved(before, after).tolist() == [False, token < LENGTHS[1], False]


@torch.no_grad()
def test_contrastive_queries_see_no_text(model: QFormerPretrainingModel, batch: Batch) -> None:
    """They come out of the pass that writes, whose text they must not see; alone they are what a connector computes."""
    features, ids, mask = arguments(batch)
    queries, _ = model.read_and_write(features, ids, mask)
    assert_close(queries, model.read(features))
    for token in range(7):
        assert not moved(queries, model.read_and_write(features, other_word(batch, 0, token)["input_ids"], mask)[0]).any()
    others = features.clone()
    others[1] += 1
    assert moved(queries, model.read_and_write(others, ids, mask)[0]).all(dim=1).tolist() == [False, True, False]


# ---- generation: text sees the photo and what stands before it


@torch.no_grad()
def test_generation_sees_the_past_alone(model: QFormerPretrainingModel, batch: Batch) -> None:
    features, ids, mask = arguments(batch)
    _, words = model.read_and_write(features, ids, mask)
    present = mask.bool()
    for token in range(1, 7):
        _, after = model.read_and_write(features, other_word(batch, 1, token)["input_ids"], mask)
        expected = torch.zeros(3, 7, dtype=torch.bool)
        expected[1, token:] = token < LENGTHS[1]
        assert (moved(words, after) & present).equal(expected & present)


@torch.no_grad()
def test_generation_starts_with_its_own_token_and_sees_the_photo(model: QFormerPretrainingModel, batch: Batch) -> None:
    features, ids, mask = arguments(batch)
    _, words = model.read_and_write(features, ids, mask)
    assert not moved(words, model.read_and_write(features, other_word(batch, 1, 0)["input_ids"], mask)[1]).any()  # [DEC] for [CLS]
    model.config.start_token_id = 28
    assert (moved(words, model.read_and_write(features, ids, mask)[1]) | ~mask.bool()).all()
    model.config.start_token_id = 29
    seen = moved(words, model.read_and_write(features.roll(1, 0), ids, mask)[1])
    assert (seen | ~mask.bool()).all()


def test_the_multimodal_causal_mask_in_full() -> None:
    seen = multimodal_causal_mask(torch.tensor([[1, 1, 0]]), queries=2)[0].int()
    assert seen.tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],
    ]


# ---- matching: everything sees everything


@torch.no_grad()
def test_matching_sees_photo_and_all_text_but_padding(model: QFormerPretrainingModel, batch: Batch) -> None:
    features, ids, mask = arguments(batch)
    before = model.match(features, ids, mask)
    assert before.shape == (3, 2)
    for token in range(7):
        after = model.match(features, other_word(batch, 1, token)["input_ids"], mask)
        assert moved(before, after).tolist() == [False, token < LENGTHS[1], False]
    others = features.clone()
    others[2] += 1
    assert moved(before, model.match(others, ids, mask)).tolist() == [False, False, True]


# ---- losses


@torch.no_grad()
def test_the_contrastive_loss_by_hand(qformer: QFormerPretrainingModel, batch: Batch) -> None:
    """Two separate encoders, the nearest query, the learned temperature."""
    features, ids, mask = arguments(batch)
    outputs = qformer(**batch, label_smoothing=0.1)
    queries = F.normalize(qformer.vision_projection(qformer.read(features)), dim=-1)
    similarity = torch.empty(3, 3)
    for text in range(3):
        length = LENGTHS[text]  # alone, without padding
        embedded = qformer.embed_texts(ids[text : text + 1, :length], mask[text : text + 1, :length])[0]
        for photo in range(3):
            similarity[photo, text] = max(float(query @ embedded) for query in queries[photo])
    assert_close(outputs.similarity, similarity, rtol=1e-4, atol=1e-5)
    assert_close(outputs.contrastive_loss, contrastive_loss(similarity / 0.07, same_photo(torch.arange(3)), 0.1), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_generation_loss_is_of_words_alone(qformer: QFormerPretrainingModel, batch: Batch) -> None:
    """Row by row without padding: the words behind the first, given those before them; the mean over all of them."""
    features, ids, mask = arguments(batch)
    losses = []
    for row, length in enumerate(LENGTHS):
        _, words = qformer.read_and_write(features[row : row + 1], ids[row : row + 1, :length], mask[row : row + 1, :length])
        logits = qformer.word_head(words[0, :-1], qformer.embeddings.word_embeddings.weight)
        losses.append(F.cross_entropy(logits, ids[row, 1:length], reduction="none", label_smoothing=0.1))
    loss = qformer(**batch, label_smoothing=0.1).generation_loss
    assert_close(loss, torch.cat(losses).mean(), rtol=1e-4, atol=1e-5)
    wider = {**batch, "input_ids": F.pad(ids, (0, 3)), "attention_mask": F.pad(mask, (0, 3))}
    assert_close(qformer(**wider, label_smoothing=0.1).generation_loss, loss, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_matching_loss_by_hand(qformer: QFormerPretrainingModel, batch: Batch) -> None:
    """Two photos leave no choice of negatives: two right pairs, and each wrong one twice."""
    two = {name: tensor[:2] for name, tensor in batch.items()}
    features, ids, mask = arguments(two)
    right = qformer.match(features, ids, mask)
    wrong = qformer.match(features, ids.flip(0), mask.flip(0))
    logits, labels = torch.cat([right, wrong, wrong]), torch.tensor([1, 1, 0, 0, 0, 0])
    assert_close(qformer(**two).matching_loss, F.cross_entropy(logits, labels), rtol=1e-4, atol=1e-5)
    same = qformer(**two, photo_ids=torch.tensor([4, 4])).matching_loss
    assert_close(same, F.cross_entropy(right, torch.tensor([1, 1])), rtol=1e-4, atol=1e-5)


def test_gradients_reach_all_but_the_frozen_tower(qformer: QFormerPretrainingModel, batch: Batch) -> None:
    pixels = torch.randn(3, 3, 64, 64)
    qformer.train()
    assert not any(module.training for module in qformer.vision_tower.modules())
    outputs = qformer(batch["input_ids"], batch["attention_mask"], pixel_values=pixels)
    assert_close(outputs.loss, outputs.contrastive_loss + outputs.matching_loss + outputs.generation_loss)
    outputs.loss.backward()
    for name, parameter in qformer.named_parameters():
        assert (parameter.grad is None) == name.startswith("vision_tower."), name
    assert qformer.query_tokens.grad is not None
    assert qformer.query_tokens.grad.abs().sum() > 0
    assert qformer.temperature.grad is not None


def test_features_once_computed_stand_for_the_photos(qformer: QFormerPretrainingModel, batch: Batch) -> None:
    pixels, text = torch.randn(3, 3, 64, 64), (batch["input_ids"], batch["attention_mask"])
    torch.manual_seed(0)
    seen = qformer(*text, pixel_values=pixels)
    torch.manual_seed(0)
    assert_close(qformer(*text, image_features=qformer.get_image_features(pixels)).loss, seen.loss)


def test_bfloat16_arithmetic_keeps_the_masks(qformer: QFormerPretrainingModel, batch: Batch) -> None:
    features, ids, mask = arguments(batch)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        queries, words = qformer.read_and_write(features, ids, mask)
        again, later = qformer.read_and_write(features, other_word(batch, 0, 3)["input_ids"], mask)
        assert qformer(**batch).loss.isfinite()
    assert torch.equal(queries, again)
    assert torch.equal(words[0, :3], later[0, :3])


def test_the_temperature_stays_within_its_bounds(qformer: QFormerPretrainingModel, batch: Batch) -> None:
    with torch.no_grad():
        qformer.temperature.fill_(-1.0)
    assert qformer(**batch).loss.isfinite()
    assert qformer.temperature.item() == pytest.approx(0.001)


def test_a_few_pairs_are_learned_by_heart(qformer_config: Callable[..., QFormerPretrainingConfig]) -> None:
    torch.manual_seed(0)
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = QFormerPretrainingModel(qformer_config(hidden_size=32, initializer_range=0.05, **calm)).train()
    features, ids = torch.randn(8, 4, 1280), torch.randint(3, 29, (8, 6))
    ids[:, 0], ids[:, -1] = 1, 2
    pairs = {"image_features": features, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=3e-3)
    first = model(**pairs, label_smoothing=0.0)
    for _ in range(180):
        optimizer.zero_grad()
        outputs = model(**pairs, label_smoothing=0.0)
        outputs.loss.backward()
        optimizer.step()
    outputs = model.eval()(**pairs, label_smoothing=0.0)
    for name in ("contrastive_loss", "matching_loss", "generation_loss"):
        assert outputs[name] < 0.5 * first[name], name
    assert outputs.similarity.argmax(dim=1).tolist() == outputs.similarity.argmax(dim=0).tolist() == list(range(8))


# ---- the folder, and what is refused


@torch.no_grad()
def test_a_saved_model_is_the_same_model(qformer: QFormerPretrainingModel, batch: Batch, tmp_path: Path) -> None:
    qformer.save_pretrained(tmp_path)
    again = QFormerPretrainingModel.from_pretrained(tmp_path)
    assert again.state_dict().keys() == qformer.state_dict().keys()
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in qformer.state_dict().items())
    assert again.config.connector_config.queries == 4
    assert torch.equal(again.embed_texts(*arguments(batch)[1:]), qformer.embed_texts(*arguments(batch)[1:]))
    assert torch.equal(again.match(*arguments(batch)), qformer.match(*arguments(batch)))


def test_each_query_learns_the_box_and_the_name_on_its_cell(qformer_config: Callable[..., QFormerPretrainingConfig], batch: Batch) -> None:
    values = qformer_config(initializer_range=0.02).to_dict()  # from larger weights queries grow alike
    torch.manual_seed(0)
    config = QFormerPretrainingConfig(**{**values, "local_queries": True, "boxed_queries": True})
    model = QFormerPretrainingModel(config).eval()  # no dropout
    boxes = torch.tensor(
        [[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]], [[0.5, 0.0, 1.0, 0.5], [0.0] * 4], [[0.0, 0.5, 0.5, 1.0], [0.0] * 4]]
    )
    told = {
        "boxes": boxes,
        "names": torch.tensor([[0, 1], [1, -1], [2, -1]]),
        "name_ids": batch["input_ids"],
        "name_mask": batch["attention_mask"],
    }
    first = model(**batch, **told, only_local=True)
    assert set(first) == {"loss", "locality_loss", "box_loss", "name_loss"}
    assert_close(first.loss, first.locality_loss + first.box_loss + first.name_loss)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=5e-3)
    for _ in range(300):
        optimizer.zero_grad()
        model(**batch, **told, only_local=True).loss.backward()
        optimizer.step()
    last = model(**batch, **told, only_local=True)
    assert last.box_loss < first.box_loss / 3
    assert last.name_loss < first.name_loss / 5
    found = model.locate(batch["image_features"], batch["input_ids"], batch["attention_mask"])
    assert found.shape == (3, 3, 4)
    for photo, name, box in ((0, 0, boxes[0, 0]), (0, 1, boxes[0, 1]), (1, 1, boxes[1, 0]), (2, 2, boxes[2, 0])):
        assert_close(found[photo, name], box, rtol=0, atol=0.1)
    assert set(model(**batch, **told)) >= {"contrastive_loss", "matching_loss", "generation_loss", "box_loss", "name_loss"}

    with pytest.raises(InputError, match="queries know no boxes"):
        QFormerPretrainingModel(QFormerPretrainingConfig(**values)).locate(*arguments(batch))
    with pytest.raises(InputError, match="there are no boxes; give boxes, names, name_ids and name_mask"):
        model(**batch, only_local=True)
    with pytest.raises(ConfigurationError, match="boxed_queries is set, but the queries have no cells: set local_queries to true"):
        QFormerPretrainingConfig(**{**values, "boxed_queries": True})


def test_what_does_not_fit_is_said(
    qformer: QFormerPretrainingModel, qformer_config: Callable[..., QFormerPretrainingConfig], batch: Batch
) -> None:
    with pytest.raises(InputError, match="there are no photos"):
        qformer(batch["input_ids"], batch["attention_mask"])
    with pytest.raises(InputError, match="2 photos but 3 texts"):
        qformer(**{**batch, "image_features": batch["image_features"][:2]})
    with pytest.raises(ConfigurationError, match="reads features of width 99 but the vision tower gives 1280"):
        qformer_config(encoder_hidden_size=99)
    for changes, message in (
        ({"connector_config": {"kind": "mlp"}}, "of kind 'mlp'; set it to 'qformer'"),
        ({"start_token_id": 30523}, "start_token_id is 30523 but the text branch has 30523 tokens"),
        ({"projection": 3}, "has no option 'projection'; known: vision_config"),
    ):
        config = {"vision_config": {"model_type": "efficientnet_lite"}, "connector_config": qformer_config().connector_config, **changes}
        with pytest.raises(ConfigurationError, match=message):
            QFormerPretrainingConfig(**config)
