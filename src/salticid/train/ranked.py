"""Learning which of its own captions are the better ones, from many that were drawn once (`train.drawn_captions`).

A model that may not stray far from where it started does best to make a caption likelier in proportion to exp(score / temperature);
so between two captions of a photo, how much more one's log-probability has grown is their difference in score over the temperature.
The loss is the squared distance from that (regressing relative rewards: Gao et al., REBEL, arXiv 2404.16767). Unlike `self_critical`
it uses what was drawn again and again, and each caption tells how much better it is, not only whether it is.

B rows of the batch, T tokens, M labelled tokens, A answers of a row, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from salticid.data.collate import Collator, answer_index
from salticid.data.conversation import Example
from salticid.data.tokenize import IGNORE_INDEX
from salticid.errors import ConfigurationError
from salticid.train.drawn_captions import DrawnCaptions, read_drawn
from salticid.train.precision import DTYPES, choose_precision
from salticid.train.recipe import RankedRecipe
from salticid.train.self_critical import Scored, look_once, pass_examples, with_drawn_captions
from salticid.train.trainer import StageTrainer

BEST = 2
"""Captions of each photo that are always among those learned from."""
FURTHEST = 8.0
"""Nats that a caption is asked to lie above or below the mean of its photo's, at most: one stray word can score far below all others."""


class RankedTrainer(StageTrainer):
    """Trains on a mixture's supervised conversations and on how captions that were drawn before compare.

    Args:
        objective: where the captions lie, and how they are compared.
        collate: makes model inputs of examples, of any length.

    Raises:
        DataError: see `read_drawn`. ConfigurationError: in training, conversations that are not packed.
    """

    def __init__(self, objective: RankedRecipe, collate: Collator, **kwargs: Any):
        super().__init__(data_collator=pass_examples, **kwargs)
        self.objective: RankedRecipe = objective
        self.collate = copy(collate)
        self.collate.max_length = None  # drawn captions are found again by their place in the row: none may be left out
        self.drawn = read_drawn(objective.drawn)
        # As the stage starts, also where it goes on from a checkpoint, which is read later.
        start = deepcopy(cast(Any, self.model)).to(DTYPES[choose_precision(self.recipe.precision)])
        self._start: Any = start.requires_grad_(False).eval()
        self._agreements: list[float] = []

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, *args: Any, **kwargs: Any) -> Any:
        examples: list[Example] = inputs["examples"]
        chosen = self._choose(examples)
        seen = look_once(self.model, self._start.vision_tower, examples, self.collate)
        batch = self._prepare_inputs(with_drawn_captions(examples, chosen, self.collate, weight=0.0) | seen)
        loss, outputs = super().compute_loss(model, batch, True, *args, **kwargs)
        if any(chosen):
            with torch.no_grad():
                before = self._start.to(outputs.logits.device)(**batch, logits_for_labels_only=True, use_cache=False).logits
            grown_BA = answer_logprobs(outputs.logits, batch["labels"]) - answer_logprobs(before, batch["labels"])
            ranking, agreement = ranking_loss(grown_BA, [each.rewards if each else () for each in chosen], self.objective.temperature)
            self._agreements.append(agreement)
            loss = loss + self.objective.weight * ranking
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._agreements:
            logs = {**logs, "agreement": sum(self._agreements) / len(self._agreements)}
            self._agreements = []
        super().log(logs, start_time)

    def _choose(self, examples: Sequence[Example]) -> list[Scored | None]:
        """Of each photo whose captions were drawn the best and some others, the same wherever the step is done again."""
        chance = random.Random(f"{self.recipe.seed} {self.state.global_step}")
        return [
            choose(self.drawn[example.references], self.objective.captions, chance) if example.references in self.drawn else None
            for example in examples
        ]


def choose(drawn: DrawnCaptions, count: int, chance: random.Random) -> Scored | None:
    """The best two and, by chance, others of the better half, up to `count`; `None` where fewer than two were drawn.

    The worse half are mostly slips of drawing, which score far below the rest: squared, they would drown what is asked of the others.
    """
    order = sorted(range(len(drawn.captions)), key=lambda number: -drawn.scores[number])
    if len(order) < 2:
        return None
    others = order[BEST : -(-len(order) // 2)]
    chosen = order[:BEST] + chance.sample(others, min(count - BEST, len(others)))
    return Scored(tuple(drawn.captions[number] for number in chosen), tuple(drawn.scores[number] for number in chosen))


def answer_logprobs(logits_MV: Tensor, labels_BT: Tensor) -> Tensor:
    """(B, A) log-probability of each answer as a whole, given logits of the labelled tokens in reading order; 0 where a row has fewer."""
    targets_BT = F.pad(labels_BT[:, 1:], (0, 1), value=IGNORE_INDEX)
    labelled_BT = targets_BT != IGNORE_INDEX
    if int(labelled_BT.sum()) != len(logits_MV):
        raise ConfigurationError(f"{len(logits_MV)} tokens have logits but {int(labelled_BT.sum())} have labels")
    tokens_M = -F.cross_entropy(logits_MV.float(), targets_BT[labelled_BT].to(logits_MV.device), reduction="none")
    answers_BT = F.pad(answer_index(labels_BT)[:, 1:], (0, 1))
    most = int(answers_BT.max())
    rows_BT = torch.arange(len(labels_BT), device=labels_BT.device)[:, None].expand_as(answers_BT)
    places_M = (rows_BT * most + answers_BT - 1)[labelled_BT].to(tokens_M.device)
    return tokens_M.new_zeros(len(labels_BT) * most).index_add(0, places_M, tokens_M).view(len(labels_BT), most)


def ranking_loss(grown_BA: Tensor, scores: Sequence[Sequence[float]], temperature: float) -> tuple[Tensor, float]:
    """Mean squared distance, in nats, of how much likelier captions became from what their scores ask; and how well the two correlate.

    Args:
        grown_BA: log-probability of each answer now less that at the start. scores: of the first answers of each row; none in a row
            without drawn captions.
        temperature: a difference in score of that much is one nat.
    """
    grown, asked = [], []
    for row_A, scored in zip(grown_BA, scores, strict=True):
        if scored:
            own, wanted = row_A[: len(scored)], row_A.new_tensor(scored) / temperature
            grown.append(own - own.mean())
            asked.append((wanted - wanted.mean()).clamp(-FURTHEST, FURTHEST))
    grown_C, asked_C = torch.cat(grown), torch.cat(asked)
    spread = (grown_C.detach().norm() * asked_C.norm()).clamp(min=1e-9)
    return (grown_C - asked_C).pow(2).mean(), float((grown_C.detach() @ asked_C) / spread)
