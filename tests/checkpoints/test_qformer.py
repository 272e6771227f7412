"""What a Q-Former in training starts from: BLIP-2's first-stage file, a BERT, an EVA tower; and folders that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertForMaskedLM

from salticid.checkpoints.key_table import KeyTable
from salticid.checkpoints.qformer import load_qformer, new_like, start_from
from salticid.checkpoints.qformer_keys import BLIP2_RULES
from salticid.checkpoints.tinygpt_v_keys import vision_rules
from salticid.checkpoints.vision_weights import load_vision
from salticid.errors import CheckpointError, ModelNotFoundError
from salticid.models.qformer import QFormerPretrainingConfig, QFormerPretrainingModel

WORDS = 40
WIDTH = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
EVA = {"model_type": "blip_2_vision_model", **WIDTH, "image_size": 28, "patch_size": 14}


def build(seed: int, **changes: Any) -> QFormerPretrainingModel:
    torch.manual_seed(seed)
    model = QFormerPretrainingModel(
        QFormerPretrainingConfig(
            vision_config=EVA,
            connector_config={
                "kind": "qformer",
                "queries": 5,
                "qformer_config": {**WIDTH, "encoder_hidden_size": 16, "max_position_embeddings": 20},
            },
            vision_keep_cls=True,
            **{"vocab_size": WORDS, "start_token_id": WORDS - 1, "projection_size": 6, **changes},
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        model.temperature.fill_(0.05 + seed / 100)
    return model.eval()


def upstream_file(model: QFormerPretrainingModel, path: Path) -> dict[str, torch.Tensor]:
    """The model under LAVIS's names, as its runner saves it, with what a first-stage file holds besides."""
    own = {name: weight for name, weight in model.state_dict().items() if not name.startswith("vision_tower.")}
    norm = {f"vision_tower.model.post_layernorm.{kind}": torch.randn(16) for kind in ("weight", "bias")}
    tensors = KeyTable(BLIP2_RULES).invert({**own, **norm})
    tensors["Qformer.cls.predictions.decoder.weight"] = tensors["Qformer.bert.embeddings.word_embeddings.weight"]
    tensors["Qformer.cls.predictions.decoder.bias"] = tensors["Qformer.cls.predictions.bias"]
    tensors["Qformer.bert.embeddings.position_ids"] = torch.arange(20)[None]
    torch.save({"model": tensors}, path)
    return tensors


def test_the_published_first_stage_is_gone_on_from(tmp_path: Path) -> None:
    published, model = build(1), build(2)
    tensors = upstream_file(published, tmp_path / "blip2_pretrained.pth")
    blocks = {name: weight.clone() for name, weight in model.vision_tower.state_dict().items() if "post_layernorm" not in name}
    start_from(model, tmp_path / "blip2_pretrained.pth")
    for name, weight in published.state_dict().items():
        if not name.startswith("vision_tower."):
            assert torch.equal(model.state_dict()[name], weight), name
    assert all(torch.equal(weight, model.vision_tower.state_dict()[name]) for name, weight in blocks.items())
    assert torch.equal(model.vision_tower.model.post_layernorm.weight, tensors["ln_vision.weight"])


def test_upstreams_names_are_spelt_out(tmp_path: Path) -> None:
    names = upstream_file(build(1), tmp_path / "file.pth")
    assert {
        "query_tokens",
        "temp",
        "vision_proj.weight",
        "text_proj.bias",
        "itm_head.weight",
        "ln_vision.bias",
        "Qformer.bert.embeddings.word_embeddings.weight",
        "Qformer.bert.embeddings.LayerNorm.weight",
        "Qformer.bert.encoder.layer.0.attention.self.query.weight",
        "Qformer.bert.encoder.layer.0.crossattention.self.key.bias",
        "Qformer.bert.encoder.layer.1.intermediate.dense.weight",
        "Qformer.bert.encoder.layer.1.output.LayerNorm.weight",
        "Qformer.bert.encoder.layer.2.intermediate_query.dense.weight",
        "Qformer.bert.encoder.layer.2.output_query.LayerNorm.bias",
        "Qformer.cls.predictions.bias",
        "Qformer.cls.predictions.transform.dense.weight",
        "Qformer.cls.predictions.transform.LayerNorm.bias",
    } <= names.keys()
    assert not any("layer.1.crossattention" in name for name in names)


def test_a_second_stage_file_lacks_the_text_branch(tmp_path: Path) -> None:
    tensors = upstream_file(build(1), tmp_path / "first.pth")
    second = {name: weight for name, weight in tensors.items() if ".cls." not in name and ".intermediate.dense" not in name}
    torch.save({"model": {**second, "t5_proj.weight": torch.ones(2, 2)}}, tmp_path / "second.pth")
    with pytest.raises(CheckpointError, match="needs its text branch and heads too"):
        start_from(build(2), tmp_path / "second.pth")
    torch.save({"model": {**tensors, "strange": torch.ones(2)}}, tmp_path / "third.pth")
    with pytest.raises(CheckpointError, match="no rule for strange"):
        start_from(build(2), tmp_path / "third.pth")
    with pytest.raises(CheckpointError, match=r"does not fit this Q-Former: .*\(40, 16\) for \(50, 16\)"):
        start_from(build(2, vocab_size=50), tmp_path / "first.pth")


@torch.no_grad()
def test_bert_gives_its_words_and_layers_to_text_and_queries(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"max_position_embeddings": 20, "initializer_range": 0.3, "pad_token_id": 0}
    bert = BertForMaskedLM(BertConfig(vocab_size=WORDS - 1, **WIDTH, **sizes)).eval()
    bert.save_pretrained(tmp_path)
    model, before = build(2), {name: weight.clone() for name, weight in build(2).state_dict().items()}
    start_from(model, tmp_path)
    after = model.state_dict()
    layer = bert.bert.encoder.layer[1]
    for ours in ("intermediate", "intermediate_query"):
        assert torch.equal(after[f"qformer.encoder.layer.1.{ours}.dense.weight"], layer.intermediate.dense.weight)
    for ours in ("output", "output_query"):
        assert torch.equal(after[f"qformer.encoder.layer.1.{ours}.LayerNorm.bias"], layer.output.LayerNorm.bias)
    new = [name for name in after if torch.equal(after[name], before[name]) and not name.startswith("vision_tower.")]
    assert all("crossattention" in name or not name.startswith("qformer.") for name in new)
    assert "query_tokens" in new
    assert torch.equal(after["embeddings.word_embeddings.weight"][-1], before["embeddings.word_embeddings.weight"][-1])  # [DEC]

    # Text alone is BERT itself, but for the embeddings that tell its sentences apart.
    ids, mask = torch.randint(1, WORDS - 1, (2, 6)), torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    bert.bert.embeddings.token_type_embeddings.weight.zero_()
    expected = bert.bert(input_ids=ids, attention_mask=mask).last_hidden_state
    found = model.qformer(query_embeds=model.embeddings(ids), query_length=0, attention_mask=mask).last_hidden_state
    assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)
    logits = model.word_head(expected, model.embeddings.word_embeddings.weight)[..., :-1]
    assert_close(logits, bert.cls(expected), rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="39 words but the tokenizer 30"):
        start_from(build(2, vocab_size=30, start_token_id=29), tmp_path)


def test_the_tower_out_of_blip2s_eva_file(tmp_path: Path) -> None:
    source, model = build(1), build(2)
    blocks = {f"vision_tower.{name}": weight for name, weight in source.vision_tower.state_dict().items() if "post_layernorm" not in name}
    tensors = {name.removeprefix("visual_encoder."): weight for name, weight in KeyTable(vision_rules(3)).invert(blocks).items()}
    tensors |= {name.replace("blocks.2.", "blocks.3."): weight for name, weight in tensors.items() if "blocks.2." in name}
    for name in [name for name in tensors if name.endswith("qkv.bias")]:
        query, _, value = tensors.pop(name).chunk(3)
        tensors |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
    torch.save(tensors, tmp_path / "eva.pth")
    norm = model.vision_tower.model.post_layernorm.weight.clone()
    load_vision(model.vision_tower.model, tmp_path / "eva.pth")
    for name, weight in source.vision_tower.state_dict().items():
        found = model.vision_tower.state_dict()[name]
        if "post_layernorm" in name:
            continue
        if name.endswith("qkv.bias"):
            assert torch.equal(found, torch.cat([weight[:16], torch.zeros(16), weight[32:]]))
        else:
            assert torch.equal(found, weight), name
    assert torch.equal(model.vision_tower.model.post_layernorm.weight, norm)  # it comes with the Q-Former


def test_folders_are_read_strictly(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no model in"):
        load_qformer(tmp_path)
    model = build(1)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="cannot read the Q-Former in"):  # no tokenizer, no image processor
        load_qformer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CheckpointError, match="a Q-Former cannot start from the 'gpt2' model"):
        start_from(model, tmp_path)
    with pytest.raises(CheckpointError, match="holds no pretrained Q-Former but a 'gpt2' model"):
        load_qformer(tmp_path)


def test_a_new_one_like_it_shares_the_tower_alone() -> None:
    model = build(1)
    new = new_like(model)
    for name, weight in model.state_dict().items():
        same = torch.equal(weight, new.state_dict()[name])
        assert same == name.startswith("vision_tower."), name
