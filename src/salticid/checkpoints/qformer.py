"""Q-Formers in training: where their weights start from, their folders, and their way into the connector of a whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, BertForMaskedLM, PreTrainedTokenizerBase

from salticid.checkpoints.key_table import KeyTable, build, listed
from salticid.checkpoints.load import model_type
from salticid.checkpoints.qformer_keys import BERT_RULES, BLIP2_RULES
from salticid.checkpoints.tinygpt_v_files import read_checkpoint
from salticid.errors import CheckpointError
from salticid.models import SalticidImageProcessor, VisionLanguageModel
from salticid.models.qformer import QFormerPretrainingConfig, QFormerPretrainingModel
from salticid.models.qformer.pretraining import connector_weights, text_feed_forward

CELLS = ("cell_head.", "box_head.")  # of objectives that an earlier run need not have had, nor a later one
MEASURED = ("vision_tower.feature_mean", "vision_tower.feature_deviation")  # see `VisionTower.standardize`
WORDS = ("embeddings.word_embeddings.weight", "word_head.bias")


def load_qformer(folder: Path) -> tuple[QFormerPretrainingModel, SalticidImageProcessor, PreTrainedTokenizerBase]:
    """A folder that Q-Former pretraining wrote, in float32, strictly: every weight is found and used.

    Raises:
        ModelNotFoundError: there is no such folder. CheckpointError: it holds another kind of model, or damaged or foreign weights.
    """
    folder = Path(folder)
    if model_type(folder) != QFormerPretrainingConfig.model_type:
        raise CheckpointError(f"{folder} holds no pretrained Q-Former but a {model_type(folder)!r} model; give the output of kind: qformer")
    try:
        loaded: Any = QFormerPretrainingModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        image_processor = SalticidImageProcessor.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (SafetensorError, OSError, RuntimeError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"cannot read the Q-Former in {folder}: {str(error).splitlines()[0]}") from error
    model, report = loaded
    if problems := [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]:
        raise CheckpointError(f"the weights in {folder} do not fit its config.json: {listed(sorted(map(str, problems)))}")
    return model, image_processor, tokenizer


def new_like(model: QFormerPretrainingModel, seed: int = 0) -> QFormerPretrainingModel:
    """The same tower with a Q-Former that has learned nothing: what training is measured against."""
    torch.manual_seed(seed)
    new = QFormerPretrainingModel(model.config)
    new.vision_tower.load_state_dict(model.vision_tower.state_dict())
    new.to(model.device)  # type: ignore[arg-type]
    return new.eval()


def start_from(model: QFormerPretrainingModel, source: Path) -> None:
    """Give a new model the weights it starts from, but never the tower's blocks.

    `source` is BLIP-2's first-stage file (`blip2_pretrained.pth`: everything, and the norm behind EVA), a folder of an earlier run
    (everything), or a BERT folder: its self-attention and words, and its feed-forwards for texts and queries both, as BLIP-2 began
    (arXiv 2301.12597, section 3.1); cross-attention, queries and heads are then new.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind or of other sizes.
    """
    source = Path(source)
    if source.is_dir():
        kind = model_type(source)
        if kind not in FOLDERS:
            raise CheckpointError(f"a Q-Former cannot start from the {kind!r} model in {source}; known: {', '.join(FOLDERS)}")
        tensors, optional = FOLDERS[kind](source, model)
    else:
        tensors, optional = _renamed(read_checkpoint(source), BLIP2_RULES), ()
    _load(model, tensors, optional, source)


def fill_connector(model: VisionLanguageModel, folder: Path) -> None:
    """Put a pretrained Q-Former in front of a whole model's linear layers, which stay as they are.

    Raises:
        CheckpointError: its queries, its Q-Former or its tower are not the model's: it reads no other tower than its own.
    """
    trained, _, _ = load_qformer(folder)
    reads = ("vision_layers", "vision_keep_cls", "vision_drop_first", "vision_positions", "vision_standardized")
    own, other = model.vision_tower.state_dict(), trained.vision_tower.state_dict()
    for name in own.keys() & other.keys() & {name.rpartition(".")[2] for name in MEASURED}:
        own[name].copy_(other[name])
    alike = all(getattr(model.config, name) == getattr(trained.config, name) for name in reads)
    if not alike or own.keys() != other.keys() or not all(torch.equal(own[name], other[name]) for name in own):
        raise CheckpointError(
            f"the Q-Former in {folder} reads another vision tower; set vision_weights to {folder}, and {', '.join(reads)}"
        )
    if model.config.connector_config.kind != "qformer":
        raise CheckpointError("this model's connector is no Q-Former; set connector.kind to 'qformer'")
    boxed = model.config.connector_config.boxed_queries
    if boxed and trained.box_head is None:
        raise CheckpointError(f"the queries of {folder} know no boxes; train them with model.boxed_queries, or leave it out of connector")
    weights = connector_weights(trained, boxed)
    like = {name: weight.shape for name, weight in model.connector.state_dict().items() if not name.startswith("layers.")}
    if wrong := [name for name in {**like, **weights} if name not in weights or like.get(name) != weights[name].shape]:
        raise CheckpointError(f"the Q-Former in {folder} has other sizes than this connector's: {listed(wrong, most=3)}")
    model.connector.load_state_dict(weights, strict=False)


def tower_weights(folder: Path) -> dict[str, Tensor]:
    """The tower's weights out of a Q-Former's folder, under the tower's own names."""
    return load_qformer(folder)[0].vision_tower.model.state_dict()


def _from_earlier(folder: Path, model: QFormerPretrainingModel) -> tuple[dict[str, Tensor], Iterable[str]]:
    """All but the tower: of that, what was measured, and of heads, those that the new model has."""
    weights, own = load_qformer(folder)[0].state_dict(), model.state_dict()
    optional = ("vision_tower.", *CELLS)
    kept = {
        name: weight
        for name, weight in weights.items()
        if not name.startswith(optional) or (name in own and name.startswith((*MEASURED, *CELLS)))
    }
    return kept, [name for name in own if name.startswith(CELLS)]


def _from_bert(folder: Path, model: QFormerPretrainingModel) -> tuple[dict[str, Tensor], Iterable[str]]:
    try:
        bert: Any = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"cannot read a BERT from {folder}: {str(error).splitlines()[0]}") from error
    tensors = _renamed(bert.state_dict(), BERT_RULES)
    own = model.state_dict()
    for name in WORDS:  # [DEC] is new
        if len(tensors[name]) > len(own[name]):
            raise CheckpointError(f"{folder} has {len(tensors[name])} words but the tokenizer {len(own[name])}; give BERT's own tokenizer")
        tensors[name] = torch.cat([tensors[name], own[name][len(tensors[name]) :]])
    for name in [name for name in tensors if text_feed_forward(name)]:
        tensors[name.replace(".intermediate.", ".intermediate_query.").replace(".output.", ".output_query.")] = tensors[name]
    return tensors, [name for name in own if name not in tensors and ("crossattention" in name or not name.startswith("qformer."))]


FOLDERS: dict[str, Callable[[Path, QFormerPretrainingModel], tuple[dict[str, Tensor], Iterable[str]]]] = {
    "bert": _from_bert,
    QFormerPretrainingConfig.model_type: _from_earlier,
}


def _renamed(tensors: Mapping[str, Tensor], rules: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: build(name, sources, tensors) for name, sources in KeyTable(rules).plan(tensors).items()}


def _load(model: QFormerPretrainingModel, tensors: dict[str, Tensor], optional: Iterable[str], source: Path) -> None:
    own = model.state_dict()
    allowed = {*optional, *(name for name in own if name.startswith("vision_tower."))}
    if missing := [name for name in own if name not in tensors and name not in allowed]:
        raise CheckpointError(f"{source} lacks {listed(missing, most=3)}; a Q-Former in training needs its text branch and heads too")
    if wrong := [name for name in tensors if name not in own or own[name].shape != tensors[name].shape]:
        sizes = [f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape) if name in own else 'nothing'}" for name in wrong]
        raise CheckpointError(f"{source} does not fit this Q-Former: {listed(sizes, most=3)}")
    model.load_state_dict(tensors, strict=False)
