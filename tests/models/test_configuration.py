"""What fits together is built, what does not is refused with both sizes."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CLIPVisionConfig, LlamaConfig

from salticid.errors import ConfigurationError
from salticid.models import ConnectorConfig, VisionLanguageConfig


def test_defaults_are_a_whole_model() -> None:
    config = VisionLanguageConfig()
    assert config.vision_config.model_type == "efficientnet_lite"
    assert config.text_config.model_type == "llama"
    assert config.connector_config.kind == "mlp"
    assert config.image_tokens == 49  # 224 pixels at stride 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_layer": [-2]}, r"VisionLanguageConfig has no option 'vision_layer'; known: .*vision_layers"),
        ({"connector_config": {"dept": 2}}, r"ConnectorConfig has no option 'dept'; known: kind, depth"),
        ({"connector_config": {"kind": "resampler"}}, r"unknown connector kind 'resampler'; known: mlp, qformer"),
        ({"connector_config": {"depth": 0}}, r"connector depth is 0; it must be a whole number, 1 or more"),
        ({"connector_config": {"depth": "two"}}, r"connector depth is 'two'"),
        ({"connector_config": {"hidden_size": 0}}, r"connector hidden_size is 0"),
        ({"connector_config": {"activation": "gelo"}}, r"unknown connector activation 'gelo'; known: gelu"),
        ({"connector_config": {"kind": "qformer", "pool": 2}}, r"a Q-Former reads all patches"),
        ({"connector_config": {"qformer_config": {"hidden_size": 16}}}, r"qformer_config is given but the connector kind is 'mlp'"),
        ({"connector_config": {"boxed_queries": True}}, r"boxed_queries is given but the connector kind is 'mlp'; set kind to 'qformer'"),
        ({"connector_config": {"kind": "qformer", "qformer_config": {"model_type": "bert"}}}, r"unknown Q-Former 'bert'"),
        ({"vision_config": {"model_type": "vit"}}, r"unknown vision tower 'vit'; set its model_type to one of clip_vision_model"),
        ({"vision_config": {"hidden_size": 8}}, r"unknown vision tower None; set its model_type"),
        ({"text_config": {"model_type": "bert"}}, r"unknown language model 'bert'; set its model_type to one of llama, phi"),
        (
            {"text_config": {"model_type": "llama", "hidden_size": "wide"}},
            r"language model's configuration .*wrong.*hidden_size",
        ),
        ({"vision_config": {"model_type": "efficientnet_lite", "variant": "lite9"}}, r"unknown EfficientNet-Lite variant 'lite9'"),
        ({"image_token_id": 32000}, r"image_token_id is 32000 but the language model has 32000 tokens"),
        ({"image_token_id": -1}, r"image_token_id is -1"),
        ({"experts": {"expert": 4}}, r"Unknown expert options \['expert'\]"),
        ({"experts": {"layers": [40]}}, r"Layer 40 cannot get experts: the language model has layers 0 to 31"),
    ],
)
def test_what_is_unknown_or_wrong_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        VisionLanguageConfig(**fields)
    assert "\n" not in str(raised.value)


def test_parts_that_do_not_fit_are_refused_with_both_sizes(tiny: Any) -> None:
    """Sizes of a tower of width 16 with 4 x 4 patches, two layers and a class token."""

    def build(tower: str = "clip", connector: dict[str, Any] | None = None, **fields: Any) -> VisionLanguageConfig:
        base = tiny.config(tower)
        return VisionLanguageConfig(
            vision_config=base.vision_config, text_config=base.text_config, connector_config=connector, image_token_id=1, **fields
        )

    qformer = {"kind": "qformer", "qformer_config": {"encoder_hidden_size": 24}}
    with pytest.raises(ConfigurationError, match="reads features of width 24 but the vision tower gives 16"):
        build(connector=qformer)
    with pytest.raises(ConfigurationError, match="reads features of width 24 but the vision tower gives 48"):
        build(connector=qformer, vision_layers=[-1, -2, 0])
    with pytest.raises(ConfigurationError, match="a grid of 4 x 4 patches cannot be joined 3 x 3"):
        build(connector={"shuffle": 3})
    with pytest.raises(ConfigurationError, match="a grid of 4 x 4 patches cannot be joined 8 x 8"):
        build(connector={"shuffle": 2, "pool": 4})
    with pytest.raises(ConfigurationError, match="need a square of patches"):
        build(connector={"pool": 2}, vision_keep_cls=True)
    with pytest.raises(ConfigurationError, match="siglip_vision_model has no class token"):
        build("siglip", vision_keep_cls=True)
    with pytest.raises(ConfigurationError, match=r"names \[3\] but clip_vision_model has hidden states 0 to 2, or -3 to -1"):
        build(vision_layers=[-2, 3])
    with pytest.raises(ConfigurationError, match=r"names \[7\] but efficientnet_lite has stages 0 to 6 and -1 for its head"):
        build("efficientnet", vision_layers=[7])
    for wrong in ([], -2, ["last"]):
        with pytest.raises(ConfigurationError, match="give a list of layer numbers"):
            build(vision_layers=wrong)


@pytest.mark.parametrize(
    ("tower", "connector", "fields", "tokens", "width"),
    [
        ("clip", "linear", {}, 16, 16),
        ("clip", "linear", {"vision_keep_cls": True}, 17, 16),
        ("clip", "linear", {"vision_layers": [-1, -2]}, 16, 32),
        ("siglip", "shuffle", {}, 4, 16),
        ("eva", "pool", {}, 4, 16),
        ("eva", "qformer", {"vision_keep_cls": True}, 3, 16),
        ("efficientnet", "mlp2x_gelu", {}, 4, 1280),
        ("efficientnet", "shuffle", {}, 1, 1280),
        ("efficientnet", "linear", {"vision_layers": [-1, 4]}, 4, 1280 + 16 * 4),
    ],
)
def test_what_the_configuration_promises_the_model_gives(
    tiny: Any, tower: str, connector: str, fields: dict[str, Any], tokens: int, width: int
) -> None:
    model = tiny.model(tower, connector, **fields)
    photos = tiny.photos(model.config, 2)
    assert model.config.image_tokens == tokens
    assert model.config.vision_width == width
    assert model.vision_tower(photos).shape[2] == width
    assert model.get_image_features(photos).shape == (2, tokens, 24)


def test_parts_may_be_given_as_configurations() -> None:
    vision = CLIPVisionConfig(hidden_size=32, num_attention_heads=2, image_size=28, patch_size=14)
    text = LlamaConfig(hidden_size=24, num_attention_heads=2, vocab_size=90, tie_word_embeddings=True)
    config = VisionLanguageConfig(vision_config=vision, text_config=text, connector_config=ConnectorConfig(depth=1), image_token_id=89)
    assert config.vision_config is vision
    assert config.text_config is text
    assert config.tie_word_embeddings
    assert config.image_tokens == 4


def test_a_dictionary_and_back(tiny: Any) -> None:
    config = tiny.config("eva", "qformer", "phi", vision_keep_cls=True, template="chatml", experts={"experts": 2, "layers": [1]})
    again = VisionLanguageConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.connector_config.qformer_config.encoder_hidden_size == 16
    assert type(again.vision_config) is type(config.vision_config)


def test_nothing_of_a_run_or_a_machine_is_saved(tiny: Any) -> None:
    """Kernels are chosen where a model is loaded."""
    model = tiny.model(experts={"experts": 2})
    assert "implementation" not in model.config.to_json_string()
