"""Do TinyGPT-V's three normalisations keep training in half precision alive? Stage 1 at nano size, with and without them.

    pip install matplotlib
    python benchmarks/norms_study.py --data path/to/data

The same first steps of `recipes/tinygpt_v/nano_stage1.yaml` on the same photos, once for each start of the norms and each precision:
no norms, norms as identities (the paper's start), norms fitted to the layers they stand in. What learns is float32, and gradients are
scaled as upstream scales them (`torch.amp.GradScaler`, from 65,536). Processors take half a minute for a step in real float16, so it is
emulated: whatever goes into a linear layer of the language model, comes out of it or passes from one decoder layer to the next is
rounded to float16, and so are its gradients; sums are float32, as on a GPU's tensor cores. Every step writes down its loss, the
gradient's norm in each decoder layer, the largest number that each layer hands on, and how many gradients are not finite. The Q-Former
of `nano_qformer.yaml` must be there, and the language model (`make parts`); `norms_study.yaml` puts them together.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup, set_seed

from salticid.checkpoints.load import load_model, load_processor
from salticid.data.collate import Collator
from salticid.data.templates import get_template
from salticid.models import VisionLanguageModel
from salticid.train.adapt import adapt
from salticid.train.assemble import run_assemble
from salticid.train.data import build_data
from salticid.train.freezing import freeze_except, learning_parameters, parameter_groups
from salticid.train.recipe import PartsRecipe, StageRecipe, read_recipe

RECIPES = Path("recipes/tinygpt_v")
PARTS = Path(__file__).with_suffix(".yaml")
NORMS = r"\.self_attn\.(q|k|output)_layernorm\.weight$"
STARTS: dict[str, list[str]] = {
    "no norms": ["model.norms=null", "fit_norms=false"],
    "norms as identities": ["fit_norms=false"],
    "norms fitted": [],
}
AS_IT_WAS = [  # the stage, when this was run
    "lora.rank=16",
    "lora.alpha=16",
    "lora.dropout=0.05",
    "train.connector.learning_rate=1e-3",
    "schedule.min_lr=8e-4",
]
PRECISIONS = ("float32", "float16")
LARGEST_FLOAT16 = torch.finfo(torch.float16).max


def main() -> None:
    parser = argparse.ArgumentParser(description="TinyGPT-V's normalisations at nano size, in float32 and float16")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds flickr8k/")
    parser.add_argument("--out", type=Path, default=Path("runs/norms_study"))
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/norms.svg"))
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    runs = {}
    for start, overrides in STARTS.items():
        folder = options.out / start.replace(" ", "_")
        if not (folder / "config.json").exists():
            run_assemble(read_recipe(PARTS, PartsRecipe, [f"output={folder}", *overrides]))
        for precision in PRECISIONS:
            kept = options.out / f"{folder.name}_{precision}.json"
            if not kept.exists():
                records = list(train(folder, precision, options.steps, options.data))
                kept.write_text(json.dumps(records) + "\n", encoding="utf-8")
            runs[f"{start}, {precision}"] = json.loads(kept.read_text(encoding="utf-8"))
    print(as_table(runs))
    draw(runs, options.figure)


def train(folder: Path, precision: str, steps: int, data: Path) -> Iterator[dict[str, Any]]:
    """Run the first steps of stage 1; yields what each step wrote down."""
    overrides = [
        f"model={folder}",
        f"data.folder={data}",
        f"schedule.steps={steps}",
        f"schedule.warmup_steps={steps // 4}",
        "schedule.batch_size=4",
        *AS_IT_WAS,
    ]
    recipe = read_recipe(RECIPES / "nano_stage1.yaml", StageRecipe, overrides)
    set_seed(recipe.seed)
    model, processor = load_model(folder, dtype=torch.float32), load_processor(folder)
    adapt(model, processor, recipe)
    parts = recipe.train
    if model.config.norms is None:
        part = parts["language_model"]
        assert part.only is not None
        parts = {**parts, "language_model": part.model_copy(update={"only": [name for name in part.only if name != NORMS]})}
    freeze_except(model, parts)
    half = precision == "float16"
    if half:
        emulate_float16(model)
    model.train()
    model.vision_tower.eval()
    collate = Collator(processor, get_template(model.config.template), recipe.data.max_length, recipe.data.pack)
    examples = build_data(recipe.data, recipe.schedule, recipe.seed, collate)
    optimizer = torch.optim.AdamW(parameter_groups(model, parts), betas=recipe.betas)
    schedule = get_cosine_schedule_with_warmup(optimizer, recipe.schedule.warmup_steps, steps)
    scaler = torch.amp.GradScaler("cpu", enabled=half)
    largest = watch_activations(model)
    for step in range(steps):
        size = recipe.schedule.batch_size
        batch = collate([examples[index] for index in range(step * size, (step + 1) * size)])
        loss = model(**batch, logits_for_labels_only=True, use_cache=False).loss
        scale = scaler.get_scale()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        gradients = gradients_by_layer(model)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()
        record = {
            "loss": loss.item(),
            "scale": scale,
            "gradient_norms": [float(torch.linalg.vector_norm(values)) for values in gradients],
            "not_finite": sum(int((~values.isfinite()).sum()) for values in gradients),
            "zero": sum(int((values == 0).sum()) for values in gradients) / sum(values.numel() for values in gradients),
            "largest": list(largest),
        }
        print(folder.name, precision, step, f"loss {record['loss']:.3f} scale {scale:.0f} not finite {record['not_finite']}", flush=True)
        yield record


class RoundToFloat16(torch.autograd.Function):
    """The nearest float16, forwards and backwards; what is too large becomes infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.half().float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.half().float()


def emulate_float16(model: VisionLanguageModel) -> None:
    """Round the language model's weights once, and what its linear layers and decoder layers take and give in every pass."""
    language: Any = model.language_model
    for module in language.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (RoundToFloat16.apply(inputs[0]), *inputs[1:]))
            module.register_forward_hook(lambda _, inputs, output: RoundToFloat16.apply(output))
    for layer in language.base_model.layers:
        layer.register_forward_hook(_round_output)
    for parameter in language.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: gradient.half().float())
        else:
            parameter.data = parameter.data.half().float()


def _round_output(layer: Any, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> Any:
    return (RoundToFloat16.apply(output[0]), *output[1:]) if isinstance(output, tuple) else RoundToFloat16.apply(output)


def watch_activations(model: VisionLanguageModel) -> list[float]:
    """The largest number that each decoder layer hands on, renewed by every forward pass."""
    layers: Any = model.language_model.base_model.layers
    largest = [0.0] * len(layers)

    def hook(index: int) -> Any:
        def keep(module: Any, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            largest[index] = float(hidden.detach().abs().max())

        return keep

    for index, layer in enumerate(layers):
        layer.register_forward_hook(hook(index))
    return largest


def gradients_by_layer(model: VisionLanguageModel) -> list[Tensor]:
    """All gradients of each decoder layer, in one row."""
    layers: Any = model.language_model.base_model.layers
    return [
        torch.cat([parameter.grad.flatten() for parameter in learning_parameters(layer).values() if parameter.grad is not None])
        for layer in layers
    ]


def as_table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """One row for each run."""
    head = ["run", "loss of the first step", "of the last ten", "steps with a gradient that is not finite", "steps with a NaN loss"]
    head += ["largest activation", "gradient norm, first layer / last layer (median)", "gradients that are exactly zero (median)"]
    rows = [head, ["---"] * len(head)]
    for name, records in runs.items():
        first, last = (statistics.median(record["gradient_norms"][layer] for record in records) for layer in (0, -1))
        rows.append(
            [
                name,
                f"{records[0]['loss']:.2f}",
                f"{statistics.mean(record['loss'] for record in records[-10:]):.2f}",
                f"{sum(record['not_finite'] > 0 for record in records)} of {len(records)}",
                str(sum(record["loss"] != record["loss"] for record in records)),
                f"{max(max(record['largest']) for record in records):,.0f}",
                f"{first:.2g} / {last:.2g}",
                f"{statistics.median(record['zero'] for record in records):.1%}",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Loss by step, gradient norm by layer, largest activation by layer."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "norms"
    from matplotlib import pyplot

    figure, (losses, gradients, activations) = pyplot.subplots(1, 3, figsize=(13, 4.2), constrained_layout=True)
    colours = dict(zip(STARTS, ("#888888", "#c44e52", "#4c72b0"), strict=True))
    for name, records in runs.items():
        start, precision = name.split(", ")
        style: dict[str, Any] = {"color": colours[start], "linestyle": "-" if precision == "float32" else "--", "label": name}
        losses.plot([record["loss"] for record in records], **style)
        layers = range(1, len(records[0]["largest"]) + 1)
        gradients.plot(layers, [statistics.median(record["gradient_norms"][layer - 1] for record in records) for layer in layers], **style)
        activations.plot(layers, [max(record["largest"][layer - 1] for record in records) for layer in layers], **style)
    activations.axhline(LARGEST_FLOAT16, color="black", linewidth=0.8, linestyle=":")
    activations.annotate("largest float16", (1, LARGEST_FLOAT16 * 1.1), fontsize=8)
    for axes, title, x in (
        (losses, "loss", "step"),
        (gradients, "gradient norm (median over steps)", "decoder layer"),
        (activations, "largest activation of any step", "decoder layer"),
    ):
        axes.set(title=title, xlabel=x)
    gradients.set_yscale("log")
    activations.set_yscale("log")
    losses.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
