"""Our own engine, through its door for one answer token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from salticid.bench.subject import weights_read
from salticid.engine.decoder.decoder import make_decoder
from salticid.engine.generate import generate_tokens
from salticid.engine.sampling import GenerationOptions
from salticid.models import VisionLanguageModel


class SalticidRunner:
    name = "salticid"

    def __init__(self, model: VisionLanguageModel):
        self.decoder = make_decoder(model)
        self.weights_read: int | None = weights_read(model)

    def run(self, prompt: Sequence[int], new_tokens: int, on_token: Callable[[int], None]) -> None:
        inputs = {"input_ids": torch.tensor([prompt])}
        for token in generate_tokens(self.decoder, inputs, GenerationOptions(max_new_tokens=new_tokens), stop=()):
            on_token(token)
