"""transformers' `generate` for a model that sees: photos go along with their rows, are read once, and are never written."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, SuppressTokensLogitsProcessor

from salticid.models.merge import repeat_photos

PHOTO_INPUTS = ("pixel_values", "image_features", "vision_features")


class PhotoGenerationMixin(GenerationMixin):
    """Adds photos to `GenerationMixin`; the model's configuration holds `image_token_id` and `image_tokens`."""

    config: Any

    def generate(  # type: ignore[override]
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' `generate`; also takes `image_features`. The placeholder is never generated: it is no word."""
        no_placeholder = SuppressTokensLogitsProcessor([self.config.image_token_id], device=str(self.device))  # type: ignore[attr-defined]
        processors = LogitsProcessorList([*(logits_processor or ()), no_placeholder])
        return super().generate(inputs, generation_config, processors, **kwargs)  # type: ignore[misc]

    @wraps(GenerationMixin.prepare_inputs_for_generation)  # transformers reads the signature to see what may be passed
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        if not kwargs.get("is_first_iteration") and kwargs.get("use_cache", True):
            for name in PHOTO_INPUTS:  # the cache has seen them
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        photos = {name: kwargs.pop(name) for name in PHOTO_INPUTS if expand_size > 1 and kwargs.get(name) is not None}
        for name, values in photos.items():  # a row may have several photos or none
            assert input_ids is not None
            photos[name] = repeat_photos(values, input_ids, self.config.image_token_id, self.config.image_tokens, expand_size)
        ids: Any = input_ids
        expanded_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, ids, **kwargs)  # type: ignore[misc]
        return expanded_ids, {**kwargs, **photos}
