"""Read this file first: photo and words in, words out.

    pixel_values -> vision_tower -> connector -+
                                               merge -> language_model -> logits
    input_ids ---------------- embeddings -----+        (dense, or with experts)

B batch, T tokens, D width, V vocabulary, I images of the whole batch, N tokens of one image, M labelled tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel
from transformers import initialization as init
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.generic import ModelOutput

from salticid.errors import ConfigurationError, InputError
from salticid.models.configuration import VisionLanguageConfig
from salticid.models.connectors import build_connector
from salticid.models.connectors.qformer import QFormerConnector
from salticid.models.generation import PhotoGenerationMixin
from salticid.models.merge import merge_image_features, refuse_lone_placeholders
from salticid.models.moe import ExpertsConfig, collect_routing, experts_loss, upcycle_language_model
from salticid.models.norms import NormsConfig, add_norms
from salticid.models.phrases import PhraseHead, PhrasesConfig
from salticid.models.vision import VisionTower

IGNORE_INDEX = -100


@dataclass
class VisionLanguageOutput(ModelOutput):
    """What a forward pass gives.

    loss: mean cross-entropy over labelled tokens, plus `aux_loss` where there are experts.
    logits: (B, T, V), or (M, V) of the tokens that predict a label when `logits_for_labels_only` was set.
    image_hidden_states: (I, N, D) projected image tokens.
    aux_loss, router_logits: of the experts; `None` in a dense model.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None


class VisionLanguageModel(PreTrainedModel, PhotoGenerationMixin):
    """A vision tower, a connector and a causal language model. TinyGPT-V and MoE-LLaVA are two configurations of it."""

    config: VisionLanguageConfig
    config_class = VisionLanguageConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012 (here and below transformers reads lists)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["wg"]  # noqa: RUF012 the experts' router

    def __init__(self, config: VisionLanguageConfig):
        # The choice of expert kernel is this model's; a part that knows no experts would refuse to hear of it.
        for part in (config.vision_config, config.text_config, config.connector_config):
            part._experts_implementation = None
        _refuse_unread_quantization(config)
        super().__init__(config)
        self.vision_tower = VisionTower(config)
        self.connector = build_connector(config)
        self.phrases = None if config.phrases is None else PhraseHead(PhrasesConfig.from_dict(config.phrases), config.vision_width)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config, dtype=torch.get_default_dtype())
        if config.norms is not None:
            add_norms(self.language_model, NormsConfig.from_dict(config.norms))
        self.experts = None if config.experts is None else ExpertsConfig.from_dict(config.experts)
        if self.experts is not None:
            upcycle_language_model(self.language_model, self.experts, host_config=config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        label_weights: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        logits_for_labels_only: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> VisionLanguageOutput:
        """Photos and words to the logits of each next word, and the loss where there are labels.

        Args:
            input_ids: (B, T); `config.image_token_id` marks the place of each image token.
            pixel_values: (I, 3, H, W), the photos of the whole batch in reading order; absent for text alone.
            attention_mask: (B, T) of 0/1, or (B, 1, T, T), additive or boolean.
            image_features: (I, N, D) from `get_image_features`, in place of `pixel_values`, to use a photo again.
            vision_features: (I, patches, D_vision) from `vision_tower`, likewise, where the connector still learns.
            labels: (B, T), -100 where no loss is taken; shifted here.
            label_weights: (B, T), weight of each label's loss, one on average.
            logits_to_keep: how many of the last tokens, or which tokens, get logits, and loss where there are labels; 0 for all.
            logits_for_labels_only: run the output head on the labelled tokens alone, which is what training needs.
            num_items_in_batch: number of labelled tokens over all accumulated batches; default, those of this one.

        Raises:
            InputError: as many placeholders as image tokens are needed; photos of another size than the vision tower's.
        """
        if image_features is None and vision_features is not None:
            image_features = self.connector(vision_features)
        elif image_features is None and pixel_values is not None:
            image_features = self.get_image_features(pixel_values)
        inputs_embeds = self._embed(input_ids, inputs_embeds, image_features, past_key_values)
        if self.experts is not None and self.experts.routing == "deepspeed":
            inputs_embeds = _silence_padding(inputs_embeds, attention_mask)

        outputs = self.language_model.base_model(
            inputs_embeds=inputs_embeds,
            attention_mask=_additive(attention_mask, inputs_embeds.dtype),
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        targets, weights = _shift(labels, IGNORE_INDEX, hidden.device), _shift(label_weights, 0, hidden.device)
        if targets is not None and logits_for_labels_only:
            kept: Any = targets != IGNORE_INDEX
        else:
            kept = (slice(None), slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep)
        logits = self._predict(hidden[kept])

        routings = () if self.experts is None else collect_routing(self.language_model)
        aux_loss = experts_loss(routings, self.experts) if routings and self.experts is not None else None
        loss = None
        if targets is not None:
            loss = _cross_entropy(logits, targets[kept], None if weights is None else weights[kept], num_items_in_batch)
            if aux_loss is not None:
                loss = loss + aux_loss.to(loss.device) * _share(targets[kept], num_items_in_batch)

        return VisionLanguageOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
            aux_loss=aux_loss,
            router_logits=tuple(routing.logits_SE for routing in routings) or None,
        )

    def _embed(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        image_features: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        """Word embeddings (B, T, D) with image tokens in place of the placeholders."""
        if input_ids is None:
            if inputs_embeds is None or image_features is not None:
                raise InputError("input_ids are missing: they say which words there are, and where photos stand among inputs_embeds")
            return inputs_embeds
        words = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if image_features is not None:
            return merge_image_features(words, input_ids, image_features, self.config.image_token_id)
        if inputs_embeds is None and not torch.compiler.is_compiling() and (not past_key_values or past_key_values.get_seq_length() == 0):
            refuse_lone_placeholders(input_ids, self.config.image_token_id)
        return words

    def _predict(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (..., D) -> logits (..., V)."""
        logits = self.language_model.get_output_embeddings()(hidden)
        cap = getattr(self.config.text_config, "final_logit_softcapping", None)  # Gemma 2, arXiv 2408.00118, section 2
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def get_image_features(self, pixel_values: torch.Tensor, **_: Any) -> torch.Tensor:
        """Photos (I, 3, H, W) -> projected image tokens (I, N, D), ready to stand among word embeddings."""
        return self.connector(self.vision_tower(pixel_values))

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for the experts decorator in this file's text; ours stands in models/moe.
        return True

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        # transformers would take "grouped_mm"; on a CPU the loop over the experts that were hit reads the fewest weights.
        return super().get_correct_experts_implementation(requested_experts or "eager")

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, QFormerConnector):
            init.normal_(module.query_tokens, std=self.config.connector_config.qformer_config.initializer_range)


def _refuse_unread_quantization(config: VisionLanguageConfig) -> None:
    # transformers would load the integers as if they were the weights, with a warning only.
    quantization = getattr(config, "quantization_config", None)
    if isinstance(quantization, dict) and quantization.get("quant_method") == "salticid" and "salticid" not in AUTO_QUANTIZER_MAPPING:
        raise ConfigurationError("these weights are quantised; import salticid.quant before loading them, or use salticid.load")


def _shift(values_BT: torch.Tensor | None, fill: int, device: torch.device) -> torch.Tensor | None:
    """Token t predicts what stands at t + 1."""
    return None if values_BT is None else F.pad(values_BT[:, 1:], (0, 1), value=fill).to(device)


def _silence_padding(words_BTD: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Padding as zeros, which MoE-LLaVA trains with: under DeepSpeed's rule padding, too, takes places at experts."""
    if mask is None or mask.ndim != 2 or mask.shape[1] != words_BTD.shape[1]:
        return words_BTD
    return words_BTD * mask[:, :, None].to(words_BTD)


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A boolean mask of four dimensions as numbers: transformers passes it on as it is, and its eager attention would add true as one."""
    if mask is None or mask.ndim != 4 or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, items: torch.Tensor | int | None
) -> torch.Tensor:
    """Sum over labelled tokens divided by `items` (default: their number); zero, with a gradient, when none is labelled."""
    targets = targets.flatten().to(logits.device)
    losses = F.cross_entropy(logits.flatten(0, -2).float(), targets, ignore_index=IGNORE_INDEX, reduction="none")
    if weights is not None:
        losses = losses * weights.flatten().to(losses)
    return losses.sum() / ((targets != IGNORE_INDEX).sum().clamp(min=1) if items is None else items)


def _share(targets: torch.Tensor, items: torch.Tensor | int | None) -> torch.Tensor | float:
    """This batch's part of the accumulated ones, so that their sum counts the experts' loss once."""
    return 1.0 if items is None else (targets != IGNORE_INDEX).sum() / items
