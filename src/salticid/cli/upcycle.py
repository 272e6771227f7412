"""salticid upcycle: a dense model becomes a mixture of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salticid.errors import InputError

EXAMPLE = "Example:  salticid upcycle nano --experts 4 --top-k 2 --layers alternate --out runs/nano/sparse"


def upcycle(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Dense model: embedded, folder, or Hub id owner/name; small weights are unpacked.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the sparse model; must not exist yet.")],
    experts: Annotated[str, typer.Option(help="Experts per layer: one number, or one for each layer, such as 4,4,2.")] = "4",
    top_k: Annotated[int, typer.Option(help="Experts that each token visits.")] = 2,
    layers: Annotated[str, typer.Option(help="alternate, first-half, second-half, all, or numbers such as 0,2,5.")] = "alternate",
    routing: Annotated[str, typer.Option(help="dropless, or deepspeed: a full expert turns tokens away.")] = "dropless",
    shared_expert: Annotated[bool, typer.Option("--shared-expert", help="Keep a dense network beside the experts.")] = False,
    reinitialise: Annotated[float, typer.Option(help="Share of each expert's neurons to draw anew (drop-upcycling: 0.5).")] = 0.0,
    noise: Annotated[float, typer.Option(help="Noise on each expert, relative to the weights' deviation.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of routers, new neurons and noise.")] = 0,
) -> None:
    """Copy feed-forward networks into experts, ready to be trained; prints the folder. Answers stay the same until then."""
    import salticid.quant  # noqa: F401  lets transformers read folders with small weights
    from salticid.checkpoints.upcycle import upcycle_folder
    from salticid.cli.session import quiet
    from salticid.engine.catalog import find_model
    from salticid.models.moe import ExpertsConfig

    counts = _numbers(experts, "experts")
    config = ExpertsConfig(
        experts=counts[0] if len(counts) == 1 else counts,
        top_k=top_k,
        layers=_numbers(layers, "layers") if layers[:1].isdigit() else layers,
        routing=routing,
        shared_expert=shared_expert,
    )
    with quiet():
        made = upcycle_folder(find_model(model), out, config, reinitialise=reinitialise, noise=noise, seed=seed)
    placement = config.experts_per_layer(made.text_config.num_hidden_layers)
    print(out)
    print(f"{sum(placement.values())} experts in layers {', '.join(map(str, placement))}; each token visits {top_k} per layer")


def _numbers(text: str, flag: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise InputError(f"--{flag} is {text!r}; give whole numbers with commas between them, such as 0,2,5") from error
