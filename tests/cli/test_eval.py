from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_eval_prints_a_table_or_json(run: Any, tiny_model_folder: Path, data_folder: Path) -> None:
    arguments = ("eval", tiny_model_folder, "--data", data_folder, "--benchmark", "yes_no_random")
    table = run(*arguments)
    assert table.code == 0
    assert "| yes_no_random | accuracy |" in table.out
    (result,) = json.loads(run(*arguments, "--no-blind", "--json").out)
    assert result["benchmark"] == "yes_no_random"
    assert 0 <= result["model"]["accuracy"] <= 1
    assert result["grey"] is None


def test_eval_names_what_is_missing(run: Any, tiny_model_folder: Path, data_folder: Path, tmp_path: Path, one_clear_line: Any) -> None:
    no_data = run("eval", tiny_model_folder, "--data", tmp_path, "--benchmark", "daquar")
    one_clear_line(no_data, 5, "put the data set there")
    unknown = run("eval", tiny_model_folder, "--data", data_folder, "--benchmark", "mmlu")
    one_clear_line(unknown, 2, "unknown benchmark mmlu; known: captions")
