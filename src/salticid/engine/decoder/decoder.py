"""Embedded tokens in, logits of the next word out: the lean decoder, and its plain twin, which calls the model's own modules.

B rows, T tokens of a prompt, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from salticid.engine.decoder.cache import KeyValueCache
from salticid.engine.decoder.native_step import read_step
from salticid.engine.decoder.plan import Plan, read_plan
from salticid.engine.decoder.unplanned import Unplanned
from salticid.models import VisionLanguageModel
from salticid.quant.native.step import Step


class Decoder(Protocol):
    """A prompt's tokens, then one token after the other.

    batches: `step` takes several rows. splits: a prompt may be read in parts, with the same answer.
    """

    model: VisionLanguageModel
    batches: bool
    splits: bool

    def new_cache(self, tokens: int) -> Any:
        """A cache of one row with room for as many tokens; it grows where that is too few."""

    def prefill(self, x_TD: Tensor, cache: Any) -> Tensor:
        """Read the next tokens of one row; logits (V,) of the word after them."""

    def step(self, tokens_B: Tensor, cache: Any) -> Tensor:
        """Read one token of each row; logits (B, V)."""


def make_decoder(model: VisionLanguageModel) -> Decoder:
    """The lean decoder where it knows the model, else the model's own modules. The weights must not change afterwards."""
    try:
        return LeanDecoder(model, read_plan(model))
    except Unplanned:
        return ModuleDecoder(model)


class LeanDecoder:
    """Runs a `Plan`: no modules, hooks, masks or cache classes of transformers between a token and its logits.

    Between layers stands float32, whatever the products compute in: sums of many small terms lose least so, and it costs nothing.
    """

    batches = True

    def __init__(self, model: VisionLanguageModel, plan: Plan):
        self.model, self.plan, self._read_one = model, plan, read_step(plan)
        # Under DeepSpeed's rule the experts' room depends on how many tokens are read at once.
        self.splits = model.experts is None or model.experts.routing != "deepspeed"

    def new_cache(self, tokens: int) -> KeyValueCache:
        return KeyValueCache(self.plan.cache, tokens)

    def prefill(self, x_TD: Tensor, cache: KeyValueCache) -> Tensor:
        turn = self.plan.rotary.span(cache.length, len(x_TD))
        x_TD = x_TD.to(torch.float32, copy=True)
        for layer, slot in zip(self.plan.layers, cache.extend(len(x_TD)), strict=True):
            x_TD = layer.prefill(x_TD, turn, slot)
        return self._predict(x_TD[-1:])[0]

    def step(self, tokens_B: Tensor, cache: KeyValueCache) -> Tensor:
        x_BD = self.model.get_input_embeddings()(tokens_B).float()
        if self._read_one is not None and len(tokens_B) == 1 and cache.padding_B is None:
            return self._step_once(self._read_one, x_BD[0], cache).unsqueeze(0)
        slots, position = cache.extend(1), cache.length - 1
        if cache.padding_B is None:
            turn = self.plan.rotary.span(position, 1)
        else:
            turn = self.plan.rotary.at(position - cache.padding_B, cache.length)
        mask_B11S = cache.mask()
        for layer, slot in zip(self.plan.layers, slots, strict=True):
            x_BD = layer.step(x_BD, turn, slot, mask_B11S)
        return self._predict(x_BD)

    def _step_once(self, read_one: Step, x_D: Tensor, cache: KeyValueCache) -> Tensor:
        keys, values = cache.extend_whole()
        turn = self.plan.rotary.span(cache.length - 1, 1)
        logits_V = read_one(x_D, turn.cos.float(), turn.sin.float(), keys, values, cache.length - 1)
        return self._cap(logits_V).to(self.plan.cache.dtype)

    def _predict(self, x_BD: Tensor) -> Tensor:
        return self._cap(self.plan.head(self.plan.final_norm(x_BD)))

    def _cap(self, logits: Tensor) -> Tensor:
        return logits if self.plan.cap is None else torch.tanh(logits / self.plan.cap) * self.plan.cap


class ModuleDecoder:
    """Calls the model for each token, as `model.generate` does; for models that have no plan."""

    batches = False
    splits = False

    def __init__(self, model: VisionLanguageModel):
        self.model = model

    def new_cache(self, tokens: int) -> DynamicCache:
        return DynamicCache(config=self.model.config.get_text_config())

    def prefill(self, x_TD: Tensor, cache: DynamicCache) -> Tensor:
        logits: Tensor = self.model(inputs_embeds=x_TD.unsqueeze(0), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[0, -1]

    def step(self, tokens_B: Tensor, cache: DynamicCache) -> Tensor:
        return self.prefill(self.model.get_input_embeddings()(tokens_B), cache).unsqueeze(0)
