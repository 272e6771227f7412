"""transformers' own `generate` on the language model alone: what people would run without us."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from salticid.bench.speed import Runner
from salticid.bench.subject import weights_read
from salticid.models import VisionLanguageModel


class _Watcher(BaseStreamer):
    """Passes tokens on as they come; the prompt comes first, in one piece."""

    def __init__(self, on_token: Callable[[int], None]):
        self.on_token, self.begun = on_token, False

    def put(self, value: Tensor) -> None:
        if self.begun:
            self.on_token(int(value))
        self.begun = True

    def end(self) -> None:
        pass


class TransformersRunner:
    name = "transformers"

    def __init__(self, model: VisionLanguageModel):
        self.language_model: Any = model.language_model
        # Our engine never says the placeholder either.
        self.unspoken = [[model.config.image_token_id]]
        self.weights_read: int | None = weights_read(model)

    @torch.inference_mode()
    def run(self, prompt: Sequence[int], new_tokens: int, on_token: Callable[[int], None]) -> None:
        ids = torch.tensor([prompt])
        self.language_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            bad_words_ids=self.unspoken,
            do_sample=False,
            pad_token_id=0,
            streamer=_Watcher(on_token),
        )


def make_runner(plain: VisionLanguageModel, precision: str, threads: int) -> Runner:
    """Whatever the precision, the plain weights: transformers has no small ones of its own for processors."""
    return TransformersRunner(plain)
