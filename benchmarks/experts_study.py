"""What do experts bring at the size of nano? MoE-Tuning beside the same steps of dense training, several seeds each.

    python benchmarks/experts_study.py --data path/to/data

Every arm starts from the embedded model's weights and runs `recipes/nano/experts.yaml`: the same photos in the same order, the same
steps, the same weights learning.

* dense: goes on as it is.
* sparse: two of four experts (MoE-LLaVA).
* wide: both of two experts for every token, which is a dense feed-forward network of twice the width: the active parameters of sparse.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from salticid.checkpoints.load import load_model, load_processor
from salticid.engine.catalog import read_card
from salticid.eval.runner import evaluate
from salticid.train.recipe import StageRecipe, read_recipe
from salticid.train.stage import run_stage

RECIPE = Path("recipes/nano/experts.yaml")
ARMS: dict[str, list[str]] = {
    "dense": ["experts=null"],
    "sparse": [],
    "wide": ["experts.options.experts=2"],
}
FIGURES = {"captions": "cider_d", "daquar": "exact_match", "yes_no_random": "accuracy"}


def main() -> None:
    parser = argparse.ArgumentParser(description="experts against dense training at nano size")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds flickr8k/, daquar/ and coco/")
    parser.add_argument("--out", type=Path, default=Path("runs/experts_study"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", help="key=value for the recipe of every arm")
    options = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms}
    for arm in options.arms:
        for seed in options.seeds:
            folder = options.out / f"{arm}_{seed}"
            kept = folder / "figures.json"
            if not kept.exists():
                common = [f"output={folder}", f"data.folder={options.data}", f"seed={seed}"]
                recipe = read_recipe(RECIPE, StageRecipe, [*common, *ARMS[arm], *options.overrides])
                if not (folder / "training.json").exists():
                    run_stage(recipe)
                kept.write_text(json.dumps(measure(folder, options.data)) + "\n", encoding="utf-8")
            results[arm].append(json.loads(kept.read_text(encoding="utf-8")))
            print(arm, seed, results[arm][-1], flush=True)
    print(as_table(results))


def measure(folder: Path, data: Path) -> dict[str, Any]:
    """Figures on held-out photos, what training took, and the size."""
    model = load_model(folder, dtype=torch.bfloat16).eval()
    figures = evaluate(model, load_processor(folder), data, FIGURES, blind=False)
    card, training = read_card(folder.name, folder), json.loads((folder / "training.json").read_text(encoding="utf-8"))
    scores = {result.benchmark: result.model[FIGURES[result.benchmark]] for result in figures}
    return {**scores, "loss": training["loss"], "seconds": training["seconds"], "parameters": card.parameters, "active": card.active}


def as_table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Means, and least to greatest of all seeds."""
    head = ["arm", "parameters (active), millions", *FIGURES, "training loss", "seconds of training"]
    rows = [head, ["---"] * len(head)]
    for arm, seeds in results.items():
        size = f"{seeds[0]['parameters'] / 1e6:.0f} ({seeds[0]['active'] / 1e6:.0f})"
        rows.append([arm, size, *(spread([seed[name] for seed in seeds], 3) for name in (*FIGURES, "loss"))])
        rows[-1].append(f"{statistics.mean(seed['seconds'] for seed in seeds):.0f}")
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
