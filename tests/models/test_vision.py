"""What is read of each tower: which layers, with or without its class token, on which grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from salticid.errors import ConfigurationError, InputError
from salticid.models.vision import places


@pytest.mark.parametrize("tower", ["clip", "siglip", "eva"])
def test_layers_are_counted_as_transformers_counts_them(tiny: Any, tower: str) -> None:
    layers = [-2, 0, 2]
    model = tiny.model(tower, "linear", vision_layers=layers)
    photos = tiny.photos(model.config, 2)
    states = model.vision_tower.model(photos, output_hidden_states=True).hidden_states
    first = 0 if tower == "siglip" else 1
    expected = torch.cat([states[layer] for layer in layers], dim=-1)[:, first:]
    assert expected.shape == (2, 16, 48)
    assert_close(model.vision_tower(photos), expected)
    assert not torch.allclose(states[-1], states[-2])


def test_the_class_token_is_kept_or_dropped(tiny: Any) -> None:
    kept = tiny.model("eva", "linear", vision_keep_cls=True)
    dropped = tiny.model("eva", "linear")
    photos = tiny.photos(kept.config, 1)
    assert kept.vision_tower(photos).shape[1] == 17
    assert_close(kept.vision_tower(photos)[:, 1:], dropped.vision_tower(photos))


def test_the_published_output_of_evas_tower_is_normalised(tiny: Any) -> None:
    model = tiny.model("eva", "linear")
    photos = tiny.photos(model.config, 1)
    tower = model.vision_tower.model
    before = model.vision_tower(photos)
    with torch.no_grad():
        tower.post_layernorm.weight.mul_(2)
        tower.post_layernorm.bias.mul_(2)
    assert_close(model.vision_tower(photos), 2 * before)


def test_stages_share_the_last_ones_grid(tiny: Any) -> None:
    """Cells of stage 4 (stride 16) are folded 2 x 2 into the head's grid (stride 32), channel by channel."""
    model = tiny.model("efficientnet", "linear", vision_layers=[-1, 4])
    photos = tiny.photos(model.config, 2)
    maps = model.vision_tower.model(photos)
    features = model.vision_tower(photos)
    channels = maps.stages[4].shape[1]
    assert features.shape == (2, 4, 1280 + 4 * channels)
    for row in range(2):
        for column in range(2):
            patch = features[:, 2 * row + column]
            assert_close(patch[:, :1280], maps.head[:, :, row, column])
            block = maps.stages[4][:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert_close(patch[:, 1280:], block.flatten(1))


def test_an_odd_grid_is_padded_at_its_end(tiny: Any) -> None:
    """At 80 pixels the head has 3 x 3 cells and stage 4 has 5 x 5: the sixth row and column are zeros."""
    from salticid.models import VisionLanguageConfig, VisionLanguageModel

    base = tiny.config("efficientnet")
    vision = {**base.vision_config.to_dict(), "image_size": 80}
    model = VisionLanguageModel(
        VisionLanguageConfig(vision_config=vision, text_config=base.text_config, vision_layers=[4], image_token_id=1)
    ).eval()
    photos = tiny.photos(model.config, 1)
    stage = model.vision_tower.model(photos).stages[4]
    features = model.vision_tower(photos).unflatten(-1, (-1, 2, 2))
    assert stage.shape[-2:] == (5, 5)
    assert features.shape[1] == model.config.image_tokens == 9
    assert_close(features[0, 8, :, 0, 0], stage[0, :, 4, 4])
    assert (features[0, 8, :, 1] == 0).all()
    assert (features[0, 2, :, :, 1] == 0).all()


def test_batch_norms_never_learn_a_batch(tiny: Any) -> None:
    model = tiny.model("efficientnet", "linear")
    photos = tiny.photos(model.config, 2)
    expected = model.vision_tower(photos)
    model.train()
    assert model.vision_tower.training
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert_close(model.vision_tower(photos), expected)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("tower", ["clip", "siglip", "eva", "efficientnet"])
def test_photos_of_another_size_are_refused(tiny: Any, tower: str) -> None:
    model = tiny.model(tower, "linear")
    size = model.config.vision_config.image_size
    for shape in ((1, 3, size * 2, size * 2), (1, 3, size, size + 4), (3, size, size)):
        with pytest.raises(InputError, match=rf"{size}, {size}\); use the model's own processor"):
            model.get_image_features(torch.zeros(shape))


def test_places_are_added_to_what_the_tower_sees(tiny: Any) -> None:
    bare, placed = (tiny.model("efficientnet", "qformer", vision_positions=flag) for flag in (False, True))
    photos = tiny.photos(bare.config, 2)
    added = placed.vision_tower(photos) - bare.vision_tower(photos)
    assert_close(added[0], added[1])
    assert_close(added[0], places(bare.config.vision_grid, bare.config.vision_width))


def test_standardized_features_have_no_mean_and_deviate_by_one(tiny: Any) -> None:
    model = tiny.model("efficientnet", "qformer", vision_positions=True, vision_standardized=True)
    bare = tiny.model("efficientnet", "qformer", vision_positions=True)
    photos = tiny.photos(bare.config, 20)
    code = places(bare.config.vision_grid, bare.config.vision_width)
    assert_close(model.vision_tower(photos), bare.vision_tower(photos))  # as long as nothing is measured
    model.vision_tower.standardize(photos)
    features = model.vision_tower(photos) - code
    assert_close(features.mean(dim=(0, 1)), torch.zeros(features.shape[-1]), atol=1e-4, rtol=0)
    loud = (bare.vision_tower(photos) - code).std(dim=(0, 1)) > 0.06
    assert loud.any()
    assert_close(features.std(dim=(0, 1))[loud], torch.ones(int(loud.sum())), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("grid", "width"), [(1, 8), (4, 16), (7, 30)])
def test_every_place_has_a_code_of_its_own(grid: int, width: int) -> None:
    code = places(grid, width)
    assert code.shape == (grid**2, width)
    assert code.abs().max() <= 1
    assert torch.cdist(code, code).add(torch.eye(grid**2)).min() > 0.1


def test_a_place_has_the_same_code_on_every_grid() -> None:
    """The middle of three is the middle of five; rows come first."""
    small, large = places(3, 24).view(3, 3, 24), places(5, 24).view(5, 5, 24)
    assert_close(small[1, 1], large[2, 2])
    assert_close(small[1, :, :12], small[1, :1, :12].expand(3, 12))
    assert not torch.allclose(small[1, 0, 12:], small[1, 1, 12:])


def test_towers_with_places_of_their_own_get_no_others(tiny: Any) -> None:
    with pytest.raises(ConfigurationError, match="patches of siglip_vision_model hold their places"):
        tiny.config("siglip", "linear", vision_positions=True)
