"""The two routing rules: dropless by its properties, DeepSpeed's by outputs recorded from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from salticid.models.moe import ExpertsConfig, Router, Routing, expert_capacity, route_deepspeed, route_dropless
from salticid.models.moe.router import gumbel_noise

GATES = Path(__file__).parents[2] / "goldens" / "moe_deepspeed_gates.safetensors"
CAPACITY_FACTORS = ("0.5", "1.0", "1.25", "1.5", "2.0")


def combine_weights(routing: Routing) -> Tensor:
    """(S, E), as DeepSpeed reports them."""
    return torch.zeros_like(routing.logits_SE).scatter_(1, routing.experts_SK, routing.weights_SK.detach())


def random_logits(tokens: int = 20, experts: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_dropless_keeps_the_most_probable(top_k: int) -> None:
    logits = random_logits()
    routing = route_dropless(logits, top_k)
    torch.testing.assert_close(routing.weights_SK.sum(-1), torch.ones(20))
    assert routing.kept_SK.all()
    for row, chosen, weights in zip(logits, routing.experts_SK, routing.weights_SK, strict=True):
        assert chosen.tolist() == sorted(range(4), key=lambda expert: -row[expert].item())[:top_k]
        torch.testing.assert_close(weights, row[chosen].softmax(0))  # renormalising is a softmax over the chosen


def test_dropless_raw_probabilities() -> None:
    logits = random_logits()
    torch.testing.assert_close(route_dropless(logits, 2, normalise=False).weights_SK, logits.softmax(-1).topk(2).values)


def test_counts_and_drops() -> None:
    logits = torch.tensor([[3.0, 2, 1], [3, 1, 2], [3, 2, 1], [1, 3, 2]])
    routing = route_deepspeed(logits, 2, capacity=2)
    assert routing.experts_SK.tolist() == [[0, 1], [0, 2], [0, 1], [1, 2]]
    assert routing.kept_SK.tolist() == [[True, True], [True, True], [False, False], [True, True]]
    assert routing.first_choices_E.tolist() == [3, 1, 0]
    assert routing.chosen_E.tolist() == [3, 3, 2]
    assert routing.dropped_E.tolist() == [1, 1, 0]
    assert routing.weights_SK[2].tolist() == [0, 0]
    # The first choice of token 3 stood in the queue of expert 1 before the second choices of tokens 0 and 2.
    assert routing.weights_SK[0].sum().item() == pytest.approx(1)


def test_survivor_of_a_pair_gets_the_whole_weight() -> None:
    logits = torch.tensor([[2.0, 1, 0], [2, 0, 1]])
    routing = route_deepspeed(logits, 2, capacity=1)
    assert routing.kept_SK.tolist() == [[True, True], [False, True]]
    assert routing.weights_SK[1].tolist() == [0, 1]


def gate_cases() -> Iterator[tuple[str, int]]:
    with safe_open(GATES, "pt") as file:
        yield from json.loads(file.metadata()["capacities"]).items()


@pytest.mark.parametrize(("case", "capacity"), list(gate_cases()))
def test_top_2_equals_deepspeed(case: str, capacity: int) -> None:
    with safe_open(GATES, "pt") as file:
        recorded = {name.rpartition(".")[2]: file.get_tensor(name) for name in file.keys() if name.startswith(f"{case}.")}  # noqa: SIM118
    check_top_2(recorded, capacity)


def check_top_2(recorded: dict[str, Tensor], capacity: int) -> None:
    routing = route_deepspeed(recorded["logits_SE"], 2, capacity, gumbel_SE=recorded.get("gumbel_SE"))
    assert torch.equal(routing.experts_SK, recorded["experts_SK"].long())
    assert torch.equal(routing.kept_SK, recorded["kept_SK"].bool())
    torch.testing.assert_close(combine_weights(routing), recorded["combine_SE"], rtol=0, atol=1e-6)
    torch.testing.assert_close(routing.aux_loss, recorded["l_aux"].squeeze(), rtol=1e-6, atol=0)


def test_goldens_drop_tokens_and_use_noise() -> None:
    # Otherwise the parity above would prove little.
    with safe_open(GATES, "pt") as file:
        names = list(file.keys())
        assert sum(not file.get_tensor(name).all() for name in names if name.endswith("kept_SK")) >= 8
        assert sum(name.endswith("gumbel_SE") for name in names) >= 8


@pytest.mark.parametrize("family", ["phi", "stablelm", "qwen", "mistral"])
def test_every_recorded_gate(shared: Path, family: str) -> None:
    folder = shared / "fixtures" / f"moellava_{family}"
    info = json.loads((folder / "meta.json").read_text())["moe_info"]
    checked = 0
    for path in sorted(folder.glob("moe_outputs_*.safetensors")):
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            prefixes = sorted({name.removesuffix("gate_logits") for name in names if name.endswith(".gate_logits")})
            for prefix in prefixes:
                case, _, layer = prefix.removesuffix(".").rpartition(".moe.")
                recorded = {"logits_SE": file.get_tensor(f"{prefix}gate_logits"), "combine_SE": file.get_tensor(f"{prefix}combine")}
                recorded["l_aux"] = file.get_tensor(f"{prefix}l_aux")
                for ours, theirs in (("experts_SK", "expert"), ("kept_SK", "kept")):
                    recorded[ours] = torch.stack([file.get_tensor(f"{prefix}{theirs}{choice}") for choice in (1, 2)], dim=1)
                if f"{prefix}gumbel" in names:
                    recorded["gumbel_SE"] = file.get_tensor(f"{prefix}gumbel")
                capacity = info[case][layer]["capacity"]
                check_top_2(recorded, capacity)
                routing = route_deepspeed(recorded["logits_SE"], 2, capacity, gumbel_SE=recorded.get("gumbel_SE"))
                assert routing.first_choices_E.tolist() == info[case][layer]["exp_counts_top1_before_drop"]
                dropped_first = int((~routing.kept_SK[:, 0]).sum())
                assert dropped_first == info[case][layer]["dropped_first"]
                checked += 1
    assert checked == 18


@pytest.mark.parametrize("table", [f"k{k}_cf{factor}" for k in (1, 2) for factor in CAPACITY_FACTORS] + ["k2_cf1.5_min4", "k2_cf1.1_E3"])
def test_capacity_for_one_to_a_hundred_tokens(table: str) -> None:
    top_k, factor, *rest = table.split("_")
    extra = rest[0] if rest else ""
    experts, least = (3 if extra == "E3" else 4), (4 if extra == "min4" else 0)
    with safe_open(GATES, "pt") as file:
        expected = file.get_tensor(f"capacity.{table}").tolist()
    got = [expert_capacity(tokens, experts, int(top_k[1:]), float(factor[2:]), least) for tokens in range(1, 101)]
    assert got == expected


def test_capacity_is_rounded_in_single_precision() -> None:
    assert expert_capacity(35, 3, 1, 1.2) == 15
    assert expert_capacity(75, 3, 1, 2.2) == 55


def test_top_1_keeps_the_luckiest_tokens_of_a_full_expert() -> None:
    logits = torch.tensor([[1.0, 0]] * 4 + [[0.0, 1]])
    uniform = torch.tensor([[0.1], [0.9], [0.5], [0.7], [0.2]]).expand(5, 2)
    routing = route_deepspeed(logits, 1, capacity=2, uniform_SE=uniform)
    assert routing.kept_SK[:, 0].tolist() == [False, True, False, True, True]
    torch.testing.assert_close(routing.weights_SK[:, 0], routing.kept_SK[:, 0] * torch.tensor([1.0, 0]).softmax(0)[0])


def test_room_for_more_than_all_tokens_drops_none() -> None:
    assert route_deepspeed(random_logits(3), 1, capacity=50).kept_SK.all()
    assert route_deepspeed(random_logits(3), 2, capacity=50).kept_SK.all()


def test_gumbel_noise_equals_torchs_from_the_same_seed() -> None:
    torch.manual_seed(3)
    expected = torch.distributions.Gumbel(torch.tensor(0.0), torch.tensor(1.0)).rsample((6, 4))
    torch.manual_seed(3)
    assert torch.equal(gumbel_noise(torch.empty(6, 4)), expected)


def test_router_draws_noise_only_when_asked() -> None:
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    quiet = Router(ExpertsConfig(routing="deepspeed"), 8, 4)
    assert torch.equal(quiet(x).experts_SK, quiet(x).experts_SK)
    noisy = Router(ExpertsConfig(routing="deepspeed", second_choice_noise="gumbel"), 8, 4).eval()
    torch.manual_seed(0)
    first, second = noisy(x), noisy(x)
    assert torch.equal(first.experts_SK[:, 0], second.experts_SK[:, 0])
    assert not torch.equal(first.experts_SK[:, 1], second.experts_SK[:, 1])


def test_router_gives_more_room_in_evaluation() -> None:
    router = Router(ExpertsConfig(routing="deepspeed", capacity_factor=0.5, eval_capacity_factor=2.0), 8, 4)
    x = torch.randn(20, 8)
    assert router(x).capacity == 5
    assert router.eval()(x).capacity == 20


def test_router_computes_in_float32_whatever_surrounds_it() -> None:
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    router = Router(ExpertsConfig(), 16, 4)
    expected = router.wg.weight.detach() @ x.float().T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = router(x).logits_SE
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected.T)
    cast = router.to(torch.bfloat16)(x).logits_SE
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, expected.T, rtol=0.02, atol=0.02)
