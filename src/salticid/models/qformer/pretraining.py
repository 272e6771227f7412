"""BLIP-2's first stage: queries learn to read a frozen tower by telling apart, matching and writing texts about photos.

Three objectives on one Q-Former (arXiv 2301.12597, section 3.2), which differ in who may see whom:

    contrastive (ITC)   queries see queries          text sees text                 the masks of two separate encoders
    matching (ITM)      queries see queries, text    text sees queries, text        everything sees everything
    generation (ITG)    queries see queries          text sees queries, text so far "multimodal causal"

Under the last mask the queries see no text, so that one pass gives the queries of ITC and the text of ITG.

With `local_queries` there is a fourth, which needs no text: each query tells what the tower sees in one cell of the photo, so that where
things are stays readable from what the queries say. With `boxed_queries` it tells of the thing that lies there, too, where its box is and
what it is called.

B batch, N patches, D width, Q queries, T text tokens, S queries and text together, P projection, V vocabulary, I photos,
K boxes of a photo, U names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.models import blip_2
from transformers.utils.generic import ModelOutput

from salticid.errors import InputError
from salticid.models.qformer.configuration import QFormerPretrainingConfig
from salticid.models.qformer.losses import (
    BOX_NUMBERS,
    box_loss,
    cell_owners,
    contrastive_loss,
    hard_negatives,
    locality_loss,
    read_boxes,
    same_photo,
)
from salticid.models.vision import VisionTower

IGNORE_INDEX = -100
# BLIP's bounds (arXiv 2201.12086, upstream models/blip_pretrain.py); at a high learning rate it would pass zero.
TEMPERATURES = (0.001, 0.5)
START_TEMPERATURE = 0.07


@dataclass
class QFormerPretrainingOutput(ModelOutput):
    """`loss` is the sum of the other losses; `similarity` (B, B) is of each photo (row) with each text, -1 to 1."""

    loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    matching_loss: torch.Tensor | None = None
    generation_loss: torch.Tensor | None = None
    locality_loss: torch.Tensor | None = None
    box_loss: torch.Tensor | None = None
    name_loss: torch.Tensor | None = None
    similarity: torch.Tensor | None = None


class WordHead(nn.Module):
    """BERT's head for words: linear, activation, norm; then the word embeddings, turned round, and a bias."""

    def __init__(self, config: transformers.Blip2QFormerConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: torch.Tensor, embeddings_VD: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., V)."""
        return F.linear(self.norm(self.activation(self.dense(hidden))), embeddings_VD, self.bias)


class QFormerPretrainingModel(PreTrainedModel):
    """A frozen tower, a Q-Former with its text branch, and the heads of three objectives. Source: LAVIS, blip2_qformer.py.

    `query_tokens` and `qformer` are what a `QFormerConnector` takes over afterwards; the rest has then done its work.
    """

    config: QFormerPretrainingConfig
    config_class = QFormerPretrainingConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: QFormerPretrainingConfig):
        super().__init__(config)
        qformer = config.qformer
        qformer._attn_implementation = config._attn_implementation
        width = qformer.hidden_size
        self.vision_tower = VisionTower(config.tower).requires_grad_(False)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.connector_config.queries, width))
        self.embeddings = blip_2.modeling_blip_2.Blip2TextEmbeddings(qformer)
        self.qformer = transformers.Blip2QFormerModel(qformer)
        self.vision_projection = nn.Linear(width, config.projection_size)
        self.text_projection = nn.Linear(width, config.projection_size)
        self.match_head = nn.Linear(width, 2)
        self.word_head = WordHead(qformer)
        self.cell_head = nn.Linear(width, qformer.encoder_hidden_size) if config.local_queries else None
        self.box_head = nn.Linear(width, BOX_NUMBERS) if config.boxed_queries else None
        self.temperature = nn.Parameter(torch.tensor(START_TEMPERATURE))
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        photo_ids: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        names: torch.Tensor | None = None,
        name_ids: torch.Tensor | None = None,
        name_mask: torch.Tensor | None = None,
        label_smoothing: float = 0.1,
        only_local: bool = False,
    ) -> QFormerPretrainingOutput:
        """Photos with one text each to the losses.

        Args:
            input_ids, attention_mask: (B, T), [CLS] first and padding last.
            pixel_values: (B, 3, H, W); or image_features: (B, N, D) of `get_image_features`, once computed.
            photo_ids: (B,), equal for texts about the same photo; default, all photos differ.
            boxes: (B, K, 4), edges of what stands on each photo as fractions of its sides, for `boxed_queries`; names: (B, K), which of the
                names it has, -1 where a photo has fewer than K boxes; name_ids, name_mask: (U, T), those names as texts.
            only_local: compute no losses but those of the cells (`local_queries`, `boxed_queries`), for which texts are not read.

        Raises:
            InputError: neither photos nor features, photos and texts differ in number, `only_local` without local queries, or
                `boxed_queries` without boxes.
        """
        if image_features is None:
            if pixel_values is None:
                raise InputError("there are no photos; give pixel_values or image_features")
            image_features = self.get_image_features(pixel_values)
        if len(image_features) != len(input_ids):
            raise InputError(f"{len(image_features)} photos but {len(input_ids)} texts; give each photo one text")
        if only_local:
            if self.cell_head is None:
                raise InputError("this model has no local queries; set model.local_queries to true")
            return _summed(self._cell_losses(self.read(image_features), image_features, boxes, names, name_ids, name_mask))
        with torch.no_grad():
            self.temperature.clamp_(*TEMPERATURES)
        photo_ids = torch.arange(len(input_ids), device=input_ids.device) if photo_ids is None else photo_ids
        same_BB = same_photo(photo_ids)

        queries_BQD, words_BTD = self.read_and_write(image_features, input_ids, attention_mask)
        similarity_BB = self.similarity(self.project_queries(queries_BQD), self.embed_texts(input_ids, attention_mask))
        logits_BB = similarity_BB / self.temperature
        contrastive = contrastive_loss(logits_BB, same_BB, label_smoothing)
        matching = self._matching_loss(image_features, input_ids, attention_mask, logits_BB, same_BB)
        generation = self._generation_loss(words_BTD, input_ids, attention_mask, label_smoothing)
        losses = {"contrastive_loss": contrastive, "matching_loss": matching, "generation_loss": generation}
        losses |= self._cell_losses(queries_BQD, image_features, boxes, names, name_ids, name_mask)
        return _summed(losses, similarity_BB)

    @torch.no_grad()
    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Photos (I, 3, H, W) -> what the frozen tower sees (I, N, D)."""
        return self.vision_tower(pixel_values)

    # ---- the three ways to run the Q-Former

    def read(self, features_IND: torch.Tensor) -> torch.Tensor:
        """The queries alone (I, Q, D): what the connector of a whole model computes."""
        return self.qformer(query_embeds=self._queries(features_IND), encoder_hidden_states=features_IND).last_hidden_state

    def read_and_write(self, features_BND: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Under the multimodal causal mask: queries (B, Q, D) that have seen no text, and text (B, T, D) that has seen no later text."""
        queries_BQD = self._queries(features_BND)
        started_BT = torch.cat([torch.full_like(ids_BT[:, :1], self.config.start_token_id), ids_BT[:, 1:]], dim=1)
        hidden_BSD = self.qformer(
            query_embeds=self.embeddings(started_BT, query_embeds=queries_BQD),
            query_length=queries_BQD.shape[1],
            attention_mask=additive(multimodal_causal_mask(mask_BT, queries_BQD.shape[1])),
            encoder_hidden_states=features_BND,
        ).last_hidden_state
        return hidden_BSD[:, : queries_BQD.shape[1]], hidden_BSD[:, queries_BQD.shape[1] :]

    def match(self, features_BND: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Logits (B, 2) for "no match" and "match" of each photo with its text: everything sees everything, queries vote."""
        queries_BQD = self._queries(features_BND)
        mask_BS = torch.cat([mask_BT.new_ones(queries_BQD.shape[:2]), mask_BT], dim=1)
        hidden_BSD = self.qformer(
            query_embeds=self.embeddings(ids_BT, query_embeds=queries_BQD),
            query_length=queries_BQD.shape[1],
            attention_mask=mask_BS,
            encoder_hidden_states=features_BND,
        ).last_hidden_state
        return self.match_head(hidden_BSD[:, : queries_BQD.shape[1]]).mean(dim=1)

    # ---- comparing

    def project_queries(self, queries_IQD: torch.Tensor) -> torch.Tensor:
        """(I, Q, D) -> unit vectors (I, Q, P)."""
        return F.normalize(self.vision_projection(queries_IQD), dim=-1)

    def embed_texts(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Texts alone -> unit vectors (B, P), of their first token."""
        hidden_BTD = self.qformer(query_embeds=self.embeddings(ids_BT), query_length=0, attention_mask=mask_BT).last_hidden_state
        return F.normalize(self.text_projection(hidden_BTD[:, 0]), dim=-1)

    @staticmethod
    def similarity(photos_IQP: torch.Tensor, texts_BP: torch.Tensor) -> torch.Tensor:
        """Cosine (I, B) of each text with the query that is nearest to it."""
        return (photos_IQP.float() @ texts_BP.float().t()).amax(dim=1)

    # ---- locating

    @torch.no_grad()
    def locate(self, features_IND: torch.Tensor, name_ids_UT: torch.Tensor, name_mask_UT: torch.Tensor) -> torch.Tensor:
        """Where things of these names are (I, U, 4): left, top, right and bottom as fractions of the photo's sides.

        Raises:
            InputError: this model has no boxed queries.
        """
        return self.tell(features_IND, self.embed_texts(name_ids_UT, name_mask_UT))[0]

    @torch.no_grad()
    def tell(self, features_IND: torch.Tensor, names_UP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each name the box (I, U, 4) that the query tells which most likely has a thing on its cell, and one of that name among the
        names given; and how likely (I, U) it has any thing there.

        Args:
            names_UP: of `embed_texts`.

        Raises:
            InputError: this model has no boxed queries.
        """
        if self.box_head is None:
            raise InputError("this model's queries know no boxes; set model.boxed_queries to true when training it")
        queries_IQD = self.read(features_IND)
        presence_IQ, boxes_IQ4 = read_boxes(self.box_head(queries_IQD))
        named_IQU = (self.project_queries(queries_IQD).float() @ names_UP.float().t() / START_TEMPERATURE).log_softmax(dim=-1)
        best_IU = (F.logsigmoid(presence_IQ)[..., None] + named_IQU).argmax(dim=1)
        return boxes_IQ4.gather(1, best_IU[..., None].expand(-1, -1, 4)), presence_IQ.sigmoid().gather(1, best_IU)

    # ---- losses

    def _cell_losses(
        self,
        queries_BQD: torch.Tensor,
        features_BND: torch.Tensor,
        boxes_BK4: torch.Tensor | None,
        names_BK: torch.Tensor | None,
        name_ids_UT: torch.Tensor | None,
        name_mask_UT: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """What each query tells of its cell: its features; and of the thing there its box, and its name among the batch's."""
        if self.cell_head is None:
            return {}
        losses = {"locality_loss": locality_loss(self.cell_head(queries_BQD), features_BND)}
        if self.box_head is None:
            return losses
        if boxes_BK4 is None or names_BK is None or name_ids_UT is None or name_mask_UT is None:
            raise InputError("boxed_queries is set, but there are no boxes; give boxes, names, name_ids and name_mask")
        owners_BQ = cell_owners(boxes_BK4, names_BK >= 0, math.isqrt(queries_BQD.shape[1]))
        taken_BQ = owners_BQ >= 0
        names_N = names_BK.gather(1, owners_BQ.clamp(min=0))[taken_BQ]
        names_UP = self.embed_texts(name_ids_UT, name_mask_UT).float()
        logits_NU = self.project_queries(queries_BQD[taken_BQ]).float() @ names_UP.t() / START_TEMPERATURE
        named = F.cross_entropy(logits_NU, names_N) if len(names_N) else logits_NU.sum()
        return {**losses, "box_loss": box_loss(self.box_head(queries_BQD), boxes_BK4, owners_BQ), "name_loss": named}

    def _matching_loss(
        self, features_BND: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor, logits_BB: torch.Tensor, same_BB: torch.Tensor
    ) -> torch.Tensor:
        """Each pair as it is, each text with a wrong photo, each photo with a wrong text; wrong ones that look right are drawn most."""
        own = torch.arange(len(ids_BT), device=ids_BT.device)
        texts, wrong_photos = hard_negatives(logits_BB.t(), same_BB)
        photos, wrong_texts = hard_negatives(logits_BB, same_BB)
        of_photo, of_text = torch.cat([own, wrong_photos, photos]), torch.cat([own, texts, wrong_texts])
        logits = self.match(features_BND[of_photo], ids_BT[of_text], mask_BT[of_text])
        return F.cross_entropy(logits.float(), (torch.arange(len(logits), device=own.device) < len(own)).long())

    def _generation_loss(
        self, words_BTD: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor, label_smoothing: float
    ) -> torch.Tensor:
        """Mean over all words of the batch; token t predicts what stands at t + 1."""
        labelled = mask_BT[:, 1:].bool()
        logits = self.word_head(words_BTD[:, :-1][labelled], self.embeddings.word_embeddings.weight)
        return F.cross_entropy(logits.float(), ids_BT[:, 1:][labelled], label_smoothing=label_smoothing)

    def _queries(self, features_IND: torch.Tensor) -> torch.Tensor:
        return self.query_tokens.expand(features_IND.shape[0], -1, -1)

    def train(self, mode: bool = True) -> QFormerPretrainingModel:
        """The frozen tower is never in training: its own dropout would make a photo's features differ from step to step."""
        super().train(mode)
        self.vision_tower.eval()
        return self

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.normal_(self.query_tokens, std=self.config.connector_config.qformer_config.initializer_range)
            init.constant_(self.temperature, START_TEMPERATURE)
        # Positions are counted, not saved: after loading they hold whatever memory held.
        if isinstance(module, blip_2.modeling_blip_2.Blip2TextEmbeddings):
            init.copy_(module.position_ids, torch.arange(module.position_ids.shape[-1])[None])


def _summed(losses: dict[str, torch.Tensor], similarity_BB: torch.Tensor | None = None) -> QFormerPretrainingOutput:
    return QFormerPretrainingOutput(loss=torch.stack([loss.float() for loss in losses.values()]).sum(), **losses, similarity=similarity_BB)


def multimodal_causal_mask(mask_BT: torch.Tensor, queries: int) -> torch.Tensor:
    """(B, S, S), true where row s may see column s: queries see queries; text sees queries, itself and earlier text, never padding."""
    length = queries + mask_BT.shape[1]
    seen_SS = torch.ones(length, length, dtype=torch.bool, device=mask_BT.device).tril()
    seen_SS[:queries, :queries] = True
    present_BS = torch.cat([mask_BT.new_ones(len(mask_BT), queries), mask_BT], dim=1).bool()
    return seen_SS & present_BS[:, None, :]


def additive(seen_BSS: torch.Tensor) -> torch.Tensor:
    """(B, 1, S, S) of 0 and the lowest number: what every attention implementation takes; eager would add true as one."""
    return torch.zeros(seen_BSS.shape, device=seen_BSS.device).masked_fill(~seen_BSS, torch.finfo(torch.float32).min)[:, None]


def text_feed_forward(name: str) -> bool:
    """Whether a weight of the Q-Former serves texts alone, which a connector has no place for."""
    pieces = name.split(".")
    return "layer" in pieces and pieces[pieces.index("layer") + 2] in ("intermediate", "output")


def connector_weights(model: QFormerPretrainingModel, boxed: bool = False) -> dict[str, Any]:
    """The trained queries and Q-Former, and what reads their boxes, under the names that `QFormerConnector` has for them."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name == "query_tokens"
        or (name.startswith("qformer.") and not text_feed_forward(name))
        or (boxed and name.startswith("box_head."))
    }
