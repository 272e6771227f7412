"""Self-critical training: captions that the model itself draws, pushed up or down by how they score against people's.

Each photo's captions compete with each other: the advantage of one is its CIDEr-D less the mean of the others (Rennie et al., arXiv
1612.00563; the mean of the others as baseline: Luo, arXiv 2003.09971). Minus log-probability times advantage is the cross-entropy of
the drawn words with the advantage as their weight, so drawn captions stand in the batch as further conversations about their photo,
beside the supervised ones, and one forward pass serves both. A teacher may score them too (`taught_captions`).

B rows of the batch, T tokens, A answers of a row, S samples of a photo.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch

from salticid.data.collate import Collator, answer_index
from salticid.data.conversation import Example, Source, Turn
from salticid.data.questions.captions import DESCRIBE
from salticid.engine.vision_language import VisionLanguage
from salticid.errors import ConfigurationError
from salticid.scorers.captions import CiderD
from salticid.train.freezing import learning_parameters
from salticid.train.precision import DTYPES, choose_precision
from salticid.train.recipe import SelfCriticalRecipe
from salticid.train.taught_captions import CaptionTeacher, read_teacher
from salticid.train.trainer import StageTrainer


@dataclass(frozen=True)
class Scored:
    """Captions drawn for one photo, and how much better each is than the mean of the others."""

    captions: tuple[str, ...]
    rewards: tuple[float, ...]

    @property
    def advantages(self) -> tuple[float, ...]:
        others, total = len(self.rewards) - 1, sum(self.rewards)
        return tuple(reward - (total - reward) / others for reward in self.rewards)


class SelfCriticalTrainer(StageTrainer):
    """Trains on a mixture's supervised conversations and, where photos have references, on captions that the model draws.

    Args:
        objective: how many captions, and how they are drawn.
        sources: the mixture's; document frequencies are counted over the references of all their photos.
        collate: makes model inputs of examples, of any length.

    Raises:
        ConfigurationError: no photo of the sources has references. DataError: see `read_teacher`.
    """

    def __init__(self, objective: SelfCriticalRecipe, sources: Iterable[Source], collate: Collator, **kwargs: Any):
        super().__init__(data_collator=pass_examples, **kwargs)
        self.drawing: SelfCriticalRecipe = objective
        self.collate = copy(collate)
        self.collate.max_length = None  # drawn captions are found again by their place in the row: none may be left out
        self.reward = CiderD(_references(sources), mark_end=True)
        self.teacher: CaptionTeacher | None = read_teacher(objective.taught) if objective.taught else None
        self._rewards: list[float] = []
        self._copy: Any = None

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        examples: list[Example] = inputs["examples"]
        writer = self._writer(model)
        seen = look_once(self.model, writer.model.vision_tower, examples, self.collate)
        if seen:
            writer.keep([photo for example in examples for photo in example.images], writer.model.connector(seen["vision_features"]))
        scored = self._draw(writer, [example for example in examples if example.references])
        self._rewards += [reward for drawn in scored for reward in drawn.rewards]
        remaining = iter(scored)
        drawn = [next(remaining) if example.references else None for example in examples]
        batch = self._prepare_inputs(with_drawn_captions(examples, drawn, self.collate, self.drawing.weight) | seen)
        return super().compute_loss(model, batch, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._rewards:
            logs = {**logs, "reward": sum(self._rewards) / len(self._rewards)}
            self._rewards = []
        super().log(logs, start_time)

    def _draw(self, writer: VisionLanguage, examples: Sequence[Example]) -> list[Scored]:
        if not examples:
            return []
        size = self.drawing.samples
        asked = [(example.images[0], DESCRIBE) for example in examples for _ in range(size)]
        options = {"temperature": self.drawing.temperature, "max_new_tokens": self.drawing.max_new_tokens}
        texts = [text.strip() for text in writer.ask_many(asked, batch_size=len(asked), **options)]
        return [self._score(example, texts[row * size : (row + 1) * size]) for row, example in enumerate(examples)]

    @torch.no_grad()
    def _writer(self, model: Any) -> VisionLanguage:
        """The model as it is now, as users ask it: a copy in the dtype of the arithmetic, whose engine reads the weights anew."""
        if self._copy is None:
            self._copy = deepcopy(model).to(DTYPES[choose_precision(self.recipe.precision)]).requires_grad_(False)
        for name, parameter in learning_parameters(model).items():
            self._copy.get_parameter(name).copy_(parameter)
        return VisionLanguage(self._copy, self.collate.processor)

    def _score(self, example: Example, captions: Sequence[str]) -> Scored:
        # A turn without an answer is an open question to the template; a caption of one full stop scores as nothing too.
        written = tuple(caption or "." for caption in captions)
        rewards = [self.reward.score(caption, example.references) for caption in written]
        if self.teacher and self.teacher.knows(example.references):
            taught, share = self.teacher.score(written, example.references), self.drawing.taught_share
            rewards = [share * told + (1 - share) * reward for told, reward in zip(taught, rewards, strict=True)]
        return Scored(written, tuple(rewards))


@torch.no_grad()
def look_once(model: Any, tower: Any, examples: Sequence[Example], collate: Collator) -> dict[str, Any]:
    """What a tower that does not learn sees of all photos, as model inputs: looked at once, whatever is then made of it.

    Args:
        model: which learns; nothing is returned where its tower does. tower: the same tower, in the dtype of the arithmetic.
    """
    photos = [photo for example in examples for photo in example.images]
    if not photos or learning_parameters(model.vision_tower):
        return {}
    pixels = collate.processor.image_processor(photos, return_tensors="pt")["pixel_values"]
    return {"pixel_values": None, "vision_features": tower(pixels.to(model.device))}


def pass_examples(examples: Sequence[Example]) -> dict[str, Any]:
    """What a batch holds depends on the model's own words, so it is made when the model is at hand."""
    return {"examples": list(examples)}


def with_drawn_captions(
    examples: Sequence[Example], scored: Sequence[Scored | None], collate: Collator, weight: float
) -> dict[str, torch.Tensor]:
    """Model inputs with drawn captions as the first conversations of their row, each token weighed by `weight` x its advantage.

    Args:
        scored: for each example its drawn captions, or `None` for one that is only supervised.
        collate: packs, and leaves no conversation out, so that answers of a row stand in the order of its conversations.
    """
    widened = [
        example if drawn is None else replace(example, conversations=(*_conversations(drawn), *example.conversations))
        for example, drawn in zip(examples, scored, strict=True)
    ]
    batch = collate(widened)
    labels_BT = batch["labels"]
    if labels_BT.shape[0] != len(examples):
        raise ConfigurationError(
            f"{len(examples)} photos gave {labels_BT.shape[0]} rows; self-critical training needs packed conversations: set data.pack"
        )
    weights_BT = batch.get("label_weights", torch.ones(labels_BT.shape))
    answers_BT = answer_index(labels_BT)
    for row, drawn in enumerate(scored):
        for number, advantage in enumerate(drawn.advantages if drawn else (), start=1):
            weights_BT[row, answers_BT[row] == number] = weight * advantage
    return {**batch, "label_weights": weights_BT}


def _conversations(drawn: Scored) -> list[tuple[Turn, ...]]:
    return [(Turn(DESCRIBE, caption),) for caption in drawn.captions]


def _references(sources: Iterable[Source]) -> list[tuple[str, ...]]:
    found = [references for source in sources for index in range(len(source)) if (references := source.example(index, 0).references)]
    if not found:
        raise ConfigurationError("no photo of the recipe's data has captions to score against; self-critical training needs some")
    return found
