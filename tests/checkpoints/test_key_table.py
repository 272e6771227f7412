"""Tables of names: every form of rule, there and back, and what is wrong with a checkpoint."""

from __future__ import annotations

import pytest
import torch

from salticid.checkpoints.key_table import Drop, KeyTable, Target, build
from salticid.errors import CheckpointError

RULES: dict[str, Target] = {
    "h.{L}.c_attn.{kind}": ("layers.{L}.q.{kind}", "layers.{L}.k.{kind}"),
    "h.{L}.experts.{E}.gate": "layers.{L}.gate_up[{E}, 0/2]",
    "h.{L}.experts.{E}.up": "layers.{L}.gate_up[{E}, 1/2]",
    "h.{L}.experts.{E}.down": "layers.{L}.down[{E}]",
    "tower.{rest}": "vision.{rest}",
    "inv_freq": Drop("recomputed"),
}


def upstream() -> dict[str, torch.Tensor]:
    names = ["h.0.c_attn.weight", "h.0.c_attn.bias", "tower.a.b.weight", "inv_freq"]
    names += [f"h.1.experts.{expert}.{part}" for expert in range(11) for part in ("down", "gate", "up")]  # 10 sorts before 2 as text
    return {name: torch.randn(4, 3) for name in names}


def convert(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: build(name, sources, tensors) for name, sources in KeyTable(RULES).plan(tensors).items()}


def test_forms() -> None:
    given = upstream()
    ours = convert(given)
    halves = {f"layers.0.{part}.{kind}" for part in "qk" for kind in ("weight", "bias")}
    assert set(ours) == halves | {"layers.1.down", "layers.1.gate_up", "vision.a.b.weight"}
    assert torch.equal(ours["layers.0.k.weight"], given["h.0.c_attn.weight"][2:])
    assert ours["layers.1.gate_up"].shape == (11, 8, 3)
    assert torch.equal(ours["layers.1.gate_up"][10, :4], given["h.1.experts.10.gate"])
    assert torch.equal(ours["layers.1.gate_up"][2, 4:], given["h.1.experts.2.up"])


def test_round_trip_and_idempotence() -> None:
    given = upstream()
    ours = convert(given)
    back = KeyTable(RULES).invert(ours)
    assert set(back) == set(given) - {"inv_freq"}
    assert all(torch.equal(back[name], given[name]) for name in back)
    again = convert(back)
    assert set(again) == set(ours)
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_an_alias_is_read_and_never_written() -> None:
    table = KeyTable({"new.{kind}": "x.{kind}"}, {"old.{kind}": "x.{kind}"})
    assert table.plan(["old.weight"])["x.weight"][0].key == "old.weight"
    assert list(table.invert({"x.weight": torch.ones(1)})) == ["new.weight"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stray": torch.ones(1), "other": torch.ones(1)}, "no rule for stray, other"),
        ({"h.1.experts.3.up": None}, "layers.1.gate_up needs every expert once"),
        ({"h.1.experts.3.down": torch.ones(5, 3)}, "differ in shape"),
        ({"h.0.c_attn.weight": torch.ones(3, 3)}, "cannot be cut into 2"),
    ],
)
def test_bad_checkpoints(change: dict[str, torch.Tensor | None], says: str) -> None:
    tensors = {name: tensor for name, tensor in (upstream() | change).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=says):
        convert(tensors)


def test_what_cannot_go_back_is_named() -> None:
    with pytest.raises(CheckpointError, match="no upstream name for stray"):
        KeyTable(RULES).invert({"stray": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"no upstream name for h\.0\.c_attn\.weight"):  # half of a joined tensor
        KeyTable(RULES).invert({"layers.0.q.weight": torch.ones(1)})
