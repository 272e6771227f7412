"""A new model from pretrained parts: a vision tower, a language model, and a connector that is still to be trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from salticid.checkpoints.load import holds, load_config, load_processor, load_unpacked
from salticid.checkpoints.lora import LORA_FOLDER
from salticid.checkpoints.qformer import fill_connector
from salticid.checkpoints.tinygpt_v import NORM
from salticid.checkpoints.vision_weights import load_vision
from salticid.checkpoints.vocabulary import shrink_bpe
from salticid.errors import CheckpointError, ConfigurationError, MissingExtraError
from salticid.models import VisionLanguageConfig, VisionLanguageModel, VisionLanguageProcessor
from salticid.models.fit_norms import fit_norms
from salticid.models.image_processing import SalticidImageProcessor
from salticid.models.norms import NormsConfig
from salticid.models.processing import IMAGE_MARK


@dataclass(frozen=True)
class Parts:
    """What to put together.

    vision, connector, model: fields of the vision tower's configuration (with `model_type`), of `ConnectorConfig`, and the remaining
    fields of `VisionLanguageConfig`. image: preset of `image_transform`. vision_weights: see `load_vision`. connector_weights: folder
    of a Q-Former that was pretrained on this very tower; `None` leaves it new. language: a `.gguf` file, a transformers folder, or the
    folder of a whole model, of which it is the language model, unpacked where it was small.
    language_layers: decoder layers to keep, in order; `None` keeps all. first_merges: shrink the vocabulary to these merges and what
    `vocabulary_texts` need; `None` keeps it. fit_norms: extra normalisations start as near as can be to what the layers gave without them;
    otherwise as identities.
    """

    vision: dict[str, Any]
    vision_weights: Path
    language: Path
    image: str
    connector: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    language_layers: Sequence[int] | None = None
    first_merges: int | None = None
    vocabulary_texts: Iterable[str] = ()
    seed: int = 0
    connector_weights: Path | None = None
    fit_norms: bool = False


def assemble(parts: Parts) -> tuple[VisionLanguageModel, VisionLanguageProcessor]:
    """Build the model in float32 with the parts' weights; the connector is initialised with `parts.seed`.

    Raises:
        CheckpointError: a weights file is missing or of another model.
        MissingExtraError: the language model is a `.gguf` file, and the package that reads it is not installed.
        ConfigurationError: the parts do not fit each other.
    """
    language, tokenizer = _read_language(parts.language)
    if parts.language_layers is not None:
        keep_layers(language, parts.language_layers)
    tokenizer, old_ids = _new_vocabulary(tokenizer, parts)
    _rearrange_embeddings(language, old_ids)

    image_id: Any = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
    config = VisionLanguageConfig(
        vision_config=parts.vision,
        text_config=_plain_text_config(language, tokenizer),
        connector_config=parts.connector,
        image_token_id=image_id,
        **parts.model,
    )
    _refuse_unknown_options(parts.vision, config.vision_config)
    torch.manual_seed(parts.seed)
    model = VisionLanguageModel(config)
    _fill_language(model, language)
    if parts.fit_norms:
        if config.norms is None:
            raise ConfigurationError("fit_norms needs norms to fit; name them in model.norms, or leave fit_norms out")
        fit_norms(model.language_model, language, parts.seed)
    load_vision(model.vision_tower.model, parts.vision_weights)
    if parts.connector_weights is not None:
        fill_connector(model, parts.connector_weights)
    image_processor = SalticidImageProcessor.from_preset(parts.image, size=config.vision_config.image_size)
    processor = VisionLanguageProcessor(image_processor, tokenizer, image_tokens=config.image_tokens)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


def _fill_language(model: VisionLanguageModel, language: PreTrainedModel) -> None:
    """The pretrained weights; extra normalisations, which no language model brings along, are identities."""
    report = model.language_model.load_state_dict(language.state_dict(), strict=False)
    norms = NormsConfig.from_dict(model.config.norms or {})
    unread = [name for name in report.unexpected_keys if norms.input or ".input_layernorm." not in name]
    if lost := [name for name in report.missing_keys if model.config.norms is None or not NORM.fullmatch(name)] + unread:
        raise CheckpointError(f"the language model does not fit its configuration: {lost[0]} is missing or unexpected")


def keep_layers(language: PreTrainedModel, layers: Sequence[int]) -> None:
    """Drop all decoder layers but `layers` (depth pruning; ShortGPT, arXiv 2403.03853, picks them by their influence)."""
    decoder: Any = language.base_model
    count = len(decoder.layers)
    wrong = [index for index in layers if not 0 <= index < count]
    if wrong or len(set(layers)) != len(layers) or not layers:
        raise ConfigurationError(f"language_layers must be distinct numbers from 0 to {count - 1}; got {list(layers)}")
    decoder.layers = torch.nn.ModuleList(decoder.layers[index] for index in layers)
    for index, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = index
    language.config.num_hidden_layers = len(layers)
    if getattr(language.config, "layer_types", None):
        language.config.layer_types = [language.config.layer_types[index] for index in layers]


def _read_language(source: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source = Path(source)
    if not source.exists():
        raise CheckpointError(f"no language model at {source}; give a .gguf file or a folder with config.json and weights")
    if holds(source, VisionLanguageConfig.model_type):
        return _language_of(source)
    if source.suffix == ".gguf" and find_spec("gguf") is None:
        raise MissingExtraError(f"reading {source.name} needs gguf, not installed here; run: pip install 'salticid[convert]'")
    folder, options = (source.parent, {"gguf_file": source.name}) if source.suffix == ".gguf" else (source, {})
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read a language model from {source}: {str(error).splitlines()[0]}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{source} lacks {len(missing)} weights of the language model, {missing[0]} among them")
    return model, tokenizer


def _language_of(source: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model of a whole model, which has learned to read image tokens."""
    config = load_config(source)
    if config.norms is not None or config.experts is not None or (source / LORA_FOLDER).is_dir():
        raise ConfigurationError(
            f"the language model in {source} has normalisations, experts or LoRA of its own; give one that is plain, or go on training it"
        )
    return load_unpacked(source).language_model, load_processor(source).tokenizer


def _new_vocabulary(tokenizer: PreTrainedTokenizerBase, parts: Parts) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Add the image placeholder, and shrink the vocabulary where asked; for each new id, the old one (-1: new)."""
    if parts.first_merges is None:
        known = len(tokenizer)
        tokenizer.add_tokens([IMAGE_MARK], special_tokens=True)
        return tokenizer, [*range(known), *[-1] * (len(tokenizer) - known)]
    backend, old_ids = shrink_bpe(tokenizer.backend_tokenizer, parts.vocabulary_texts, parts.first_merges, [IMAGE_MARK])
    names = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names), old_ids


def _rearrange_embeddings(language: PreTrainedModel, old_ids: Sequence[int]) -> None:
    """Give each new id the row of its old one; a new token starts as the mean of all, so that it stands out in nothing."""
    rows = torch.tensor(old_ids)
    inputs: Any = language.get_input_embeddings()
    outputs: Any = language.get_output_embeddings()
    for owner in (inputs, outputs):
        for name in ("weight", "bias"):
            old = getattr(owner, name, None)
            if old is None:
                continue
            if int(rows.max()) >= old.shape[0]:
                raise CheckpointError(f"the tokenizer has {int(rows.max()) + 1} tokens but the language model only {old.shape[0]} rows")
            new = old.data[rows.clamp(min=0)].clone()
            new[rows < 0] = old.data.mean(dim=0)
            setattr(owner, name, torch.nn.Parameter(new))
    inputs.num_embeddings = outputs.out_features = language.config.vocab_size = len(old_ids)
    language.tie_weights()


def _plain_text_config(language: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The language model's configuration, with the new tokenizer's ids."""
    values = language.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "architectures", "dtype"):
        values.pop(key, None)
    for name in ("bos_token_id", "eos_token_id"):
        values[name] = getattr(tokenizer, name)
    # An embedding never learns the row of its padding, which here is mostly the end of an answer too.
    values["pad_token_id"] = None
    return values


def _refuse_unknown_options(given: dict[str, Any], config: PreTrainedConfig) -> None:
    """transformers keeps an option that its configuration does not know, and goes on with the default."""
    known = {field.name for field in fields(type(config))} | {"model_type", *config.attribute_map}
    if unknown := sorted(set(given) - known):
        raise ConfigurationError(f"{config.model_type} has no option {', '.join(unknown)}; known: {', '.join(sorted(known))}")
