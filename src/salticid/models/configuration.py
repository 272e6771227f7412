"""What a vision-language model is made of, checked part against part when it is built.

Three sub-configurations, each transformers' own where there is one: the vision tower, the connector, the language model.
What is said here is architecture and is saved with the weights; how a model is trained lives in recipes.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from salticid.errors import ConfigurationError
from salticid.models.efficientnet_lite import EfficientNetLiteConfig
from salticid.models.moe.config import ExpertsConfig
from salticid.models.norms import NormsConfig
from salticid.models.phrases import PhrasesConfig

# Does the tower put a class token in front of its patches?
VISION_TOWERS: dict[str, bool] = {
    "clip_vision_model": True,
    "siglip_vision_model": False,
    "blip_2_vision_model": True,  # EVA ViT-g/14 as BLIP-2 uses it; its post_layernorm is upstream's ln_vision
    "efficientnet_lite": False,
}
LANGUAGE_MODELS = ("llama", "phi", "stablelm", "qwen2", "qwen3", "mistral", "gemma", "gemma2")
CONNECTORS = ("mlp", "qformer")
WRITTEN_BY_TRANSFORMERS = (
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "output_attentions",
    "quantization_config",
    "torch_dtype",
    "use_cache",
)


class ConnectorConfig(PreTrainedConfig):
    """How image features become language-model tokens.

    `kind="mlp"`: optional average pooling (`pool` x `pool` patches become one), optional pixel shuffle (`shuffle` x `shuffle`
    neighbours are joined in depth), then `depth` linear layers with `activation` between them. So `depth=1` is the linear
    connector, `depth=2, activation="gelu"` is LLaVA's `mlp2x_gelu`, `shuffle=2` the connector of Idefics3 and nanoVLM.

    `kind="qformer"`: a BLIP-2 Q-Former with `queries` learned queries, then `depth` linear layers; TinyGPT-V has two with no
    activation between (`depth=2, hidden_size=4096, activation=None`). With `boxed_queries`, a Q-Former that was pretrained with them, each
    query also says to the linear layers where the box of what lies on its cell is.
    """

    model_type = "salticid_connector"
    base_config_key = "connector_config"
    sub_configs: ClassVar[dict[str, Any]] = {"qformer_config": AutoConfig}

    kind: str = "mlp"
    depth: int = 2
    hidden_size: int | None = None
    activation: str | None = "gelu"
    norm: bool = False
    pool: int = 1
    shuffle: int = 1
    queries: int = 32
    boxed_queries: bool = False
    qformer_config: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        _refuse_unknown(self, kwargs)
        if self.kind not in CONNECTORS:
            raise ConfigurationError(f"unknown connector kind {self.kind!r}; known: {', '.join(CONNECTORS)}")
        for name in ("depth", "pool", "shuffle", "queries"):
            _check_count(f"connector {name}", getattr(self, name), at_least=1)
        if self.hidden_size is not None:
            _check_count("connector hidden_size", self.hidden_size, at_least=1)
        if self.activation is not None and self.activation not in ACT2FN:
            raise ConfigurationError(f"unknown connector activation {self.activation!r}; known: {', '.join(ACT2FN)}")
        if self.kind == "qformer":
            self.qformer_config = _sub_config(self.qformer_config or {}, "Q-Former", ("blip_2_qformer",))
            if self.pool > 1 or self.shuffle > 1:
                raise ConfigurationError("a Q-Former reads all patches; set pool and shuffle to 1")
        elif self.qformer_config is not None or self.boxed_queries:
            name = "qformer_config" if self.qformer_config is not None else "boxed_queries"
            raise ConfigurationError(f"{name} is given but the connector kind is 'mlp'; set kind to 'qformer'")
        super().__post_init__(**kwargs)


class VisionLanguageConfig(PreTrainedConfig):
    """Configuration of `VisionLanguageModel`.

    Args:
        vision_config: the tower's configuration (or its dict with `model_type`, one of `VISION_TOWERS`).
        text_config: the language model's configuration (or its dict with `model_type`, one of `LANGUAGE_MODELS`).
        connector_config: a `ConnectorConfig` or its dict.
        vision_layers: hidden states that are read and joined in depth, counted as transformers counts them (LLaVA: `[-2]`);
            for EfficientNet-Lite, stages 0-6 and -1 for the head. `None`: the tower's published output.
        vision_keep_cls: keep the class token (TinyGPT-V) or drop it (LLaVA).
        vision_drop_first: drop the first patch of a tower without class token; MoE-LLaVA's SigLIP was trained so.
        vision_positions: add each patch's place to its features. For EfficientNet-Lite, which knows of none, in front of a Q-Former,
            to which the order of patches says nothing.
        vision_standardized: subtract from each channel of the features its mean, and divide by its deviation, both measured once
            (`VisionTower.standardize`): a convolutional tower has no norm behind it, and what its features have in common hides from a
            Q-Former that starts from chance how they differ.
        image_token_id: id of the placeholder that stands for one image token.
        template: name of the conversation template the weights were trained with.
        experts: options of the mixture of experts, or `None` for a dense model.
        norms: extra normalisations of the language model (`NormsConfig`), or `None` for the pretrained layers as they are.
        phrases: sizes of the head that tells which phrases captions of a photo hold (`PhrasesConfig`), or `None` without it.

    Raises:
        ConfigurationError: a part is unknown, or two parts do not fit; the message names both sizes.
    """

    model_type = "salticid"
    sub_configs: ClassVar[dict[str, Any]] = {
        "vision_config": AutoConfig,
        "text_config": AutoConfig,
        "connector_config": ConnectorConfig,
    }

    # Given as a dict or a configuration, a configuration once this is built.
    vision_config: Any = None
    text_config: Any = None
    connector_config: Any = None
    vision_layers: list[int] | None = None
    vision_keep_cls: bool = False
    vision_drop_first: bool = False
    vision_positions: bool = False
    vision_standardized: bool = False
    image_token_id: int = 0
    template: str = "plain"
    experts: dict[str, Any] | None = None
    norms: dict[str, Any] | None = None
    phrases: dict[str, Any] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        _refuse_unknown(self, kwargs)
        self.vision_config = _sub_config(self.vision_config or {"model_type": "efficientnet_lite"}, "vision tower", tuple(VISION_TOWERS))
        self.text_config = _sub_config(self.text_config or {"model_type": "llama"}, "language model", LANGUAGE_MODELS)
        connector = self.connector_config or {}
        self.connector_config = connector if isinstance(connector, ConnectorConfig) else ConnectorConfig(**_own_fields(connector))
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        vision, text, connector = self.vision_config, self.text_config, self.connector_config
        _check_count("image_token_id", self.image_token_id, at_least=0)
        if self.image_token_id >= text.vocab_size:
            raise ConfigurationError(
                f"image_token_id is {self.image_token_id} but the language model has {text.vocab_size} tokens; "
                "add a placeholder token first"
            )
        if self.experts is not None:
            ExpertsConfig.from_dict(self.experts).experts_per_layer(text.num_hidden_layers)
        self._check_vision_layers()
        NormsConfig.from_dict(self.norms or {})
        if self.phrases is not None:
            PhrasesConfig.from_dict(self.phrases)
        if self.vision_keep_cls and not VISION_TOWERS[vision.model_type]:
            raise ConfigurationError(f"vision_keep_cls is set but {vision.model_type} has no class token")
        if self.vision_drop_first and VISION_TOWERS[vision.model_type]:
            raise ConfigurationError(f"vision_drop_first is for towers without a class token; {vision.model_type} has one")
        if self.vision_positions and vision.model_type != "efficientnet_lite":
            raise ConfigurationError(f"vision_positions is for towers that know of none; patches of {vision.model_type} hold their places")
        if connector.kind == "qformer":
            width = connector.qformer_config.encoder_hidden_size
            if width != self.vision_width:
                raise ConfigurationError(f"the Q-Former reads features of width {width} but the vision tower gives {self.vision_width}")
        joined = connector.pool * connector.shuffle
        if joined > 1:
            if self.vision_keep_cls or self.vision_drop_first:
                raise ConfigurationError("pool and shuffle need a square of patches; set vision_keep_cls and vision_drop_first to false")
            if self.vision_grid % joined:
                raise ConfigurationError(f"a grid of {self.vision_grid} x {self.vision_grid} patches cannot be joined {joined} x {joined}")

    def _check_vision_layers(self) -> None:
        layers, vision = self.vision_layers, self.vision_config
        if layers is None:
            return
        if not isinstance(layers, list) or not layers or not all(type(layer) is int for layer in layers):
            raise ConfigurationError(f"vision_layers is {layers!r}; give a list of layer numbers, or nothing for the tower's own output")
        if vision.model_type == "efficientnet_lite":
            known = range(-1, len(vision.stage_channels))
            meaning = f"stages 0 to {len(vision.stage_channels) - 1} and -1 for its head"
        else:
            known = range(-vision.num_hidden_layers - 1, vision.num_hidden_layers + 1)
            meaning = f"hidden states 0 to {known[-1]}, or {known[0]} to -1"
        if wrong := [layer for layer in layers if layer not in known]:
            raise ConfigurationError(f"vision_layers names {wrong} but {vision.model_type} has {meaning}")

    @property
    def vision_grid(self) -> int:
        """Patches along one side of the photo."""
        vision = self.vision_config
        if vision.model_type == "efficientnet_lite":
            return -(-vision.image_size // vision.stage_strides[-1])
        return vision.image_size // vision.patch_size

    @property
    def vision_width(self) -> int:
        """Depth of the features that the connector receives."""
        vision = self.vision_config
        if vision.model_type == "efficientnet_lite":
            return sum(_stage_width(vision, layer) for layer in self.vision_layers or [-1])
        return vision.hidden_size * len(self.vision_layers or [-1])

    @property
    def image_tokens(self) -> int:
        """Tokens that one photo takes in the language model's sequence."""
        connector = self.connector_config
        if connector.kind == "qformer":
            return connector.queries
        return (self.vision_grid // (connector.pool * connector.shuffle)) ** 2 + int(self.vision_keep_cls) - int(self.vision_drop_first)


def _stage_width(vision: EfficientNetLiteConfig, layer: int) -> int:
    """Depth of a stage after its finer cells are folded into the last stage's grid."""
    if layer == -1:
        return vision.hidden_size
    return vision.stage_channels[layer] * (vision.stage_strides[-1] // vision.stage_strides[layer]) ** 2


def _own_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Drop what transformers itself writes beside our fields when a nested configuration is saved."""
    return {key: value for key, value in values.items() if key not in ("model_type", "transformers_version")}


def _refuse_unknown(config: PreTrainedConfig, extra: dict[str, Any]) -> None:
    own = [field.name for field in fields(type(config)) if field.name in type(config).__annotations__]
    unknown = [key for key in extra if not (hasattr(PreTrainedConfig, key) or key in WRITTEN_BY_TRANSFORMERS or key.startswith("_"))]
    if unknown:
        raise ConfigurationError(f"{type(config).__name__} has no option {', '.join(map(repr, unknown))}; known: {', '.join(own)}")


def _check_count(name: str, value: Any, at_least: int) -> None:
    if type(value) is not int or value < at_least:
        raise ConfigurationError(f"{name} is {value!r}; it must be a whole number, {at_least} or more")


def _sub_config(given: dict[str, Any] | PreTrainedConfig, part: str, known: tuple[str, ...]) -> PreTrainedConfig:
    """The configuration of a part, of one of the `known` model types; a single one need not be named."""
    values = dict(given) if isinstance(given, dict) else {"model_type": given.model_type}
    model_type = values.pop("model_type", known[0] if len(known) == 1 else None)
    if model_type not in known:
        raise ConfigurationError(f"unknown {part} {model_type!r}; set its model_type to one of {', '.join(known)}")
    if isinstance(given, PreTrainedConfig):
        return given
    try:
        return AutoConfig.for_model(model_type, **values)
    except ConfigurationError:
        raise
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConfigurationError(f"the {part}'s configuration ({model_type}) is wrong: {' '.join(str(error).split())}") from error
