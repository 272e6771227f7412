"""TinyGPT-V's published files to a model folder, and back.

Upstream (DLYuanGod/TinyGPT-V) keeps a model in four places: the EVA ViT-g file, BLIP-2's Q-Former file, a Phi-2 folder, and for each
stage a checkpoint of what was trained. Upstream lays one over the other when it starts; so does `convert_tinygpt_v`, once.
Tensors keep the precision they were published in.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from salticid.checkpoints.key_table import Source, build, listed
from salticid.checkpoints.lora import merge_lora, split_lora, write_lora
from salticid.checkpoints.save import new_folder
from salticid.checkpoints.tinygpt_v_files import read_checkpoint, read_sources
from salticid.checkpoints.tinygpt_v_keys import key_tables
from salticid.checkpoints.weights import write_weights
from salticid.data.templates import get_template
from salticid.errors import CheckpointError
from salticid.models import SalticidImageProcessor, VisionLanguageConfig, VisionLanguageModel, VisionLanguageProcessor
from salticid.models.processing import IMAGE_MARK

REPORT_FILE = "conversion.json"
NEVER = -1e4  # logit of a row that upstream does not have; small enough for its probability to vanish, and within float16
STARTED = {"weight": torch.ones, "bias": torch.zeros}
NORM = re.compile(r".+\.self_attn\.(q_layernorm|k_layernorm|output_layernorm)\.(weight|bias)")


@dataclass(frozen=True)
class TinyGPTVOptions:
    """What the files do not tell. The defaults are the published model's.

    vision_layers: blocks that are used; one less than the file has. image_size: pixels along a side; default, the vision file's own size,
    and twice that for stage 4. template: of `salticid.data.templates`; default, what the stage was trained with. connector_width: between
    the two linear layers, where they are new, and seed: of what they start as.
    """

    vision_layers: int = 39
    vision_heads: int = 16
    qformer_heads: int = 12
    lora_alpha: float = 16
    lora_dropout: float = 0.05
    image_size: int | None = None
    template: str | None = None
    connector_width: int = 4096
    seed: int = 0


@dataclass(frozen=True)
class ConversionReport:
    """What `convert_tinygpt_v` found; kept as `conversion.json` beside the weights.

    stage: 4, or 3 for stages 1 to 3, whose checkpoints have the same names, or 0 for what stage 1 starts from. lora: "kept", "merged" or
    "none". new_norms: normalisations that no file has, as in a plain Phi-2, and that start as identities. dropped: tensors that a rule
    leaves out. vocabulary: rows of upstream's embedding.
    """

    stage: int
    image_size: int
    template: str
    lora: str
    new_norms: list[str]
    dropped: list[str]
    vocabulary: int


def convert_tinygpt_v(
    checkpoint: Path | None,
    language: Path,
    vision: Path,
    qformer: Path,
    out: Path,
    merge: bool = False,
    options: TinyGPTVOptions | None = None,
) -> ConversionReport:
    """Write a model folder from TinyGPT-V's files; it appears whole, by one rename.

    Args:
        checkpoint: a stage's `checkpoint_*.pth` or `.safetensors`; `None` for what stage 1 starts from, with new linear layers.
        language: a Phi-2 folder, in today's layout or with upstream's fused `query_key_value`.
        vision, qformer: `eva_vit_g.pth` and `blip2_pretrained_*.pth`, or `.safetensors` of the same names.
        merge: add the LoRA to the weights; else it is kept in `out/lora`, and PEFT is needed to load the model.

    Raises:
        CheckpointError: a file is missing, damaged, holds pickled code, or is of another model, and keys without a rule
            are listed; or `out` exists.
    """
    options = options or TinyGPTVOptions()
    text_config, tokenizer = _read_language(Path(language))
    paths = {"vision": Path(vision), "qformer": Path(qformer), "language": Path(language)}
    with tempfile.TemporaryDirectory() as scratch:
        new = Path(scratch) / "new.safetensors"
        paths["checkpoint"] = Path(checkpoint) if checkpoint is not None else new
        if checkpoint is None:
            _new_linear_layers(new, paths["qformer"], text_config.hidden_size, options)
        tensors = read_sources(paths, key_tables(options.vision_layers), text_config)
    stage = 0 if checkpoint is None else 4 if "query_tokens" in tensors.slots["checkpoint"] else 3
    size = options.image_size or _side(tensors) * (2 if stage == 4 else 1)
    template = options.template or {0: "tinygpt_v_caption", 3: "tinygpt_v_describe", 4: "tinygpt_v_tasks"}[stage]
    stop = get_template(template).answer_end

    vocabulary = text_config.vocab_size
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_MARK]})
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    text_config.vocab_size = max(vocabulary, len(tokenizer))
    config = _configure(tensors, text_config, size, template, tokenizer.get_vocab()[IMAGE_MARK], options)

    plan = key_tables(options.vision_layers)["checkpoint"].plan(tensors)
    like = _shapes(config)
    new_norms = _check(plan, like, tensors, vocabulary)
    weights = _Weights(plan, tensors, like, vocabulary, options.lora_alpha if merge else None)
    has_lora = bool(weights.factors)
    report = ConversionReport(
        stage=stage,
        image_size=size,
        template=template,
        lora="none" if not has_lora else "merged" if merge else "kept",
        new_norms=new_norms,
        dropped=sorted(set(tensors) - {source.key for sources in plan.values() for source in sources}),
        vocabulary=vocabulary,
    )
    with new_folder(Path(out)) as partial:
        write_weights(partial, weights.shapes(), iter(weights))
        if report.lora == "kept":
            write_lora(partial, weights.factors, options.lora_alpha, options.lora_dropout)
        config.save_pretrained(partial)
        _generation_config(tokenizer, stop).save_pretrained(partial)
        image_processor = SalticidImageProcessor.from_preset("blip2", size=size)
        VisionLanguageProcessor(image_processor, tokenizer, image_tokens=config.image_tokens).save_pretrained(partial)
        (partial / REPORT_FILE).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def _read_language(folder: Path) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"no language model in {folder}; give a Phi-2 folder with config.json, weights and tokenizer")
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read a language model from {folder}: {str(error).splitlines()[0]}") from error
    if config.model_type != "phi":
        raise CheckpointError(f"{folder} holds a {config.model_type!r} model; TinyGPT-V was trained on Phi-2")
    return config, tokenizer


def _new_linear_layers(path: Path, qformer: Path, width_out: int, options: TinyGPTVOptions) -> None:
    """Write what upstream has before stage 1: torch's own start, from the Q-Former's width to the language model's."""
    queries = read_checkpoint(qformer).get("query_tokens")
    if queries is None:
        raise CheckpointError(f"{qformer} is no BLIP-2 Q-Former file: it has no query_tokens; give the right file to --qformer")
    widths = (queries.shape[-1], options.connector_width, width_out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        layers = {name: nn.Linear(widths[index], widths[index + 1]) for index, name in enumerate(("llama_proj", "llama_proj2"))}
    save_file({f"{name}.{kind}": tensor for name, layer in layers.items() for kind, tensor in layer.state_dict().items()}, path)


def _side(tensors: Mapping[str, Tensor]) -> int:
    """Pixels along one side of the photos that the position grid was made for."""
    grid = round((tensors["visual_encoder.pos_embed"].shape[1] - 1) ** 0.5)
    return grid * tensors["visual_encoder.patch_embed.proj.weight"].shape[-1]


def _configure(
    tensors: Mapping[str, Tensor], text_config: PreTrainedConfig, size: int, template: str, image_token_id: int, options: TinyGPTVOptions
) -> VisionLanguageConfig:
    text = text_config.to_dict()
    for name in ("_name_or_path", "architectures", "dtype", "quantization_config"):
        text.pop(name, None)
    layer = "Qformer.bert.encoder.layer.{}."
    layers = 1 + max(int(found[1]) for key in tensors if (found := re.match(r"Qformer\.bert\.encoder\.layer\.(\d+)\.", key)))
    crossed = [index for index in range(layers) if layer.format(index) + "crossattention.self.key.weight" in tensors]
    return VisionLanguageConfig(
        architectures=["VisionLanguageModel"],
        vision_config={
            "model_type": "blip_2_vision_model",
            "hidden_size": tensors["visual_encoder.cls_token"].shape[-1],
            "intermediate_size": tensors["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": options.vision_layers,
            "num_attention_heads": options.vision_heads,
            "image_size": size,
            "patch_size": tensors["visual_encoder.patch_embed.proj.weight"].shape[-1],
        },
        connector_config={
            "kind": "qformer",
            "queries": tensors["query_tokens"].shape[1],
            "depth": 2,
            "hidden_size": tensors["llama_proj.weight"].shape[0],
            "activation": None,
            "qformer_config": {
                "hidden_size": tensors["query_tokens"].shape[2],
                "num_hidden_layers": layers,
                "num_attention_heads": options.qformer_heads,
                "intermediate_size": tensors[layer.format(0) + "intermediate_query.dense.weight"].shape[0],
                "encoder_hidden_size": tensors[layer.format(0) + "crossattention.self.key.weight"].shape[1],
                "cross_attention_frequency": crossed[1] - crossed[0] if len(crossed) > 1 else layers,
            },
        },
        text_config=text,
        vision_keep_cls=True,
        image_token_id=image_token_id,
        template=template,
        norms={"query": True, "key": True, "attention_output": True, "head_eps": text_config.layer_norm_eps},
    )


def _shapes(config: VisionLanguageConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(VisionLanguageModel(config).state_dict())


def _check(plan: Mapping[str, list[Source]], like: Mapping[str, Tensor], tensors: Mapping[str, Tensor], vocabulary: int) -> list[str]:
    """Every weight is there and of the right size; the names of those that start as identities."""
    missing = [name for name in like if name not in plan]
    new_norms = [name for name in missing if NORM.fullmatch(name)]
    if lost := [name for name in missing if name not in new_norms]:
        raise CheckpointError(f"the files lack {listed(lost)}; give TinyGPT-V's own files, downloaded whole")
    names, _ = split_lora(dict.fromkeys(plan, torch.empty(0)))
    if extra := [plan[name][0].key for name in names if name not in like]:
        raise CheckpointError(f"the configuration has no place for {listed(extra)}; are the language model and the checkpoint a pair?")
    wrong = []
    for name in names:
        source = plan[name][0]
        found, wanted = tuple(tensors[source.key].shape), tuple(like[name].shape)
        found = (found[0] // source.parts, *found[1:])
        if found[0] == vocabulary and wanted[0] > vocabulary:
            found = (wanted[0], *found[1:])
        if found != wanted and name != POSITIONS:
            wrong.append(f"{source.key} {found} for {wanted}")
    if wrong:
        raise CheckpointError(f"sizes do not fit: {listed(wrong, most=3)}; the files are of different models")
    return new_norms


POSITIONS = "vision_tower.model.embeddings.position_embedding"


class _Weights:
    """Our tensors one after another, so that none but the one being written is in memory a second time."""

    def __init__(
        self, plan: dict[str, list[Source]], tensors: Mapping[str, Tensor], like: dict[str, Tensor], vocabulary: int, alpha: float | None
    ):
        self.plan, self.tensors, self.like, self.vocabulary, self.alpha = plan, tensors, like, vocabulary, alpha
        factors = {name: build(name, sources, tensors) for name, sources in plan.items() if ".lora_" in name}
        for name in [name for name in factors if name.endswith(".q_proj.lora_A.weight")]:
            for other in ("k_proj", "v_proj"):
                factors[name.replace("q_proj", other)] = factors[name]
        self.factors = factors

    def shapes(self) -> dict[str, Tensor]:
        """Shapes and precisions, on the meta device."""
        kinds = {name: self.tensors[self.plan[name][0].key].dtype if name in self.plan else torch.float32 for name in self.like}
        return {name: torch.empty_like(like, dtype=kinds[name]) for name, like in self.like.items()}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, like in self.like.items():
            yield name, self._make(name, like)

    def _make(self, name: str, like: Tensor) -> Tensor:
        if name not in self.plan:
            return STARTED[name.rsplit(".", 1)[1]](like.shape)
        tensor = build(name, self.plan[name], self.tensors)
        if name == POSITIONS:
            tensor = interpolate_positions(tensor, like.shape[1])
        if tensor.shape[0] < like.shape[0]:
            tensor = _grow(name, tensor, like.shape[0])
        module = name.removesuffix(".weight")
        if self.alpha is not None and f"{module}.lora_A.weight" in self.factors:
            tensor = merge_lora(tensor, self.factors[f"{module}.lora_A.weight"], self.factors[f"{module}.lora_B.weight"], self.alpha)
        return tensor


def interpolate_positions(positions: Tensor, count: int) -> Tensor:
    """A class position and a square grid (1, 1 + n, D) to (1, count, D), bicubic in float32 as upstream's `interpolate_pos_embed`."""
    if positions.shape[1] == count:
        return positions
    old, new = (round((length - 1) ** 0.5) for length in (positions.shape[1], count))
    grid = positions[:, 1:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([positions[:, :1], grid.to(positions.dtype)], dim=1)


def _grow(name: str, tensor: Tensor, rows: int) -> Tensor:
    """Rows for the photo's placeholder: an average word to read, and one that is never written."""
    if "lm_head" in name:
        new = torch.zeros_like(tensor[:1]) if name.endswith("weight") else torch.full_like(tensor[:1], NEVER)
    else:
        new = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, new.expand(rows - tensor.shape[0], *tensor.shape[1:])])


def _generation_config(tokenizer: PreTrainedTokenizerBase, stop: str) -> GenerationConfig:
    """Stop at the end of an answer too. Upstream stops at the end of a text alone, which its training never shows."""
    ids = tokenizer(stop, add_special_tokens=False)["input_ids"] if stop else []
    stops = [tokenizer.eos_token_id, *(ids if len(ids) == 1 else [])]
    return GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)
