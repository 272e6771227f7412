from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from salticid.data.caption_text import add_text_branch_tokens
from salticid.models import SalticidImageProcessor
from salticid.models.qformer import QFormerPretrainingConfig, QFormerPretrainingModel


def save(folder: Path, tokenizer_folder: Path) -> Path:
    tokenizer = add_text_branch_tokens(AutoTokenizer.from_pretrained(tokenizer_folder))
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "encoder_hidden_size": 1280}
    torch.manual_seed(0)
    config = QFormerPretrainingConfig(
        vision_config={"model_type": "efficientnet_lite", "width_coefficient": 0.25, "depth_coefficient": 0.5, "image_size": 64},
        connector_config={"kind": "qformer", "queries": 3, "qformer_config": small},
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        start_token_id=tokenizer.bos_token_id,
    )
    QFormerPretrainingModel(config).save_pretrained(folder)
    SalticidImageProcessor.from_preset("efficientnet_lite", size=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_retrieval_prints_a_table_or_json(run: Any, tiny_model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "qformer", tiny_model_folder)
    result = run("retrieval", folder, "--data", data_folder, "--rerank", 2, "--untrained")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("| 8 photos, 40 texts | similarity | ranked again | chance | before training |")
    told = json.loads(run("retrieval", folder, "--data", data_folder, "--json").out)
    assert told["untrained"] is None
    assert told["trained"]["photos"] == 8
    assert 0 <= told["trained"]["similarity"]["text_to_image_r10"] <= 1


def test_bad_input_is_one_line(run: Any, one_clear_line: Any, tiny_model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    one_clear_line(run("retrieval", tmp_path / "none", "--data", data_folder), 3, "no model in")
    one_clear_line(run("retrieval", tiny_model_folder, "--data", data_folder), 4, "holds no pretrained Q-Former")
    one_clear_line(run("retrieval", tiny_model_folder, "--data", tmp_path), 5, "There is no folder")
    one_clear_line(run("retrieval", tiny_model_folder, "--data", data_folder, "--kind", "gqa"), 2, "known: flickr8k, coco")
