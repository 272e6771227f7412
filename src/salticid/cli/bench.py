"""salticid bench: speed and memory of a model, or of a published model's shape, on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from salticid.cli.flags import Json
from salticid.errors import InputError

EXAMPLE = "Example:  salticid bench --shape phi-2 --layers 4 --precision bf16 --against transformers"
MEMORY_EXAMPLE = "Example:  salticid bench memory --shape moe-llava-phi2"
KERNELS_EXAMPLE = "Example:  salticid bench kernels --shape phi-2 --precision int4"
EXPERTS_EXAMPLE = "Example:  salticid bench experts --shape phi-2 --precision bf16"


class _SpeedUnlessNamed(TyperGroup):
    """`salticid bench MODEL` is `salticid bench speed MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = not args or args[0] in (*self.commands, "--help")
        return super().parse_args(ctx, args if named else ["speed", *args])


Model = Annotated[str | None, typer.Argument(metavar="MODEL", help="Embedded model, model folder, or Hub id owner/name.")]
Shape = Annotated[str | None, typer.Option(help="Instead of a model: a published model's shape with random weights, such as phi-2.")]
Layers = Annotated[int | None, typer.Option(help="Of a shape, the first so many decoder layers.")]
Prompt = Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")]
NewTokens = Annotated[int, typer.Option(min=2, help="Tokens of the answer.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of everyone who is measured; default, torch's.")]

app = typer.Typer(cls=_SpeedUnlessNamed, no_args_is_help=True)


@app.callback(epilog=EXAMPLE)
def options() -> None:
    """Measure speed and memory; without a verb, speed."""
    from salticid.engine.threads import spin_briefly

    spin_briefly()  # as the commands that are measured here do


@app.command("speed", epilog=EXAMPLE)
def speed(
    model: Model = None,
    shape: Shape = None,
    layers: Layers = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16, int8 or int4.")] = "bf16",
    against: Annotated[list[str] | None, typer.Option(help="transformers, openvino or llama.cpp; again for more.")] = None,
    prompt: Prompt = 600,
    new_tokens: NewTokens = 33,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds after one to warm up; all runners in turn.")] = 5,
    threads: Threads = None,
    words: Annotated[int | None, typer.Option(help="Of a shape, bits of word table and output head: 8 or 4. Default: 8.")] = None,
    memory: Annotated[bool, typer.Option(help="Also measure the peak memory of a process of its own.")] = True,
    as_json: Json = False,
) -> None:
    """Measure the prompt's speed, the answer's, peak memory, and how much of the machine's read bandwidth decoding uses."""
    from salticid.bench.subject import Subject, check_precision

    subject = Subject(model, shape, layers, words)
    check_precision(precision)
    from salticid.bench.runners import check_peer, make_peer

    peers = {name: check_peer(name) for name in dict.fromkeys(against or ())}
    from salticid.bench.bandwidth import read_bandwidth
    from salticid.bench.child import measure_peak
    from salticid.bench.machine import describe_machine, head
    from salticid.bench.prompt import check_room, random_prompt
    from salticid.bench.report import speed_table, speed_values
    from salticid.bench.runners.salticid_engine import SalticidRunner
    from salticid.bench.speed import measure
    from salticid.bench.tables import gigabytes
    from salticid.cli.session import quiet

    config = subject.config()
    check_room(config, prompt, new_tokens)
    count = _set_threads(threads)
    with quiet():
        # First and alone, for what this process holds must not be in its way.
        peak = measure_peak(subject, precision, prompt, new_tokens, count) if memory else None
        bandwidth = read_bandwidth()
        runners: list[Any] = [SalticidRunner(subject.build(precision))]
        plain = subject.build_plain(precision) if peers else None
        runners += [make_peer(name, plain, precision, count) for name in peers if plain is not None]
        speeds = measure(runners, random_prompt(config, prompt), new_tokens, rounds, progress=_progress)
    facts = describe_machine(package for peer in peers.values() for package in peer.packages)
    if as_json:
        values = {"machine": facts, "model": subject.name, "precision": precision, "prompt_tokens": prompt, "new_tokens": new_tokens}
        values |= {"rounds": rounds, "bandwidth": bandwidth, "peak_memory": None if peak is None else peak.answer}
        print(json.dumps(values | {"runners": speed_values(speeds, bandwidth)}, indent=2))
        return
    print(f"{head(facts)}\n")
    print(f"{subject.name}, {precision}: {prompt} tokens answered with {new_tokens}; median (slowest-fastest) of {rounds} rounds.")
    print(f"Memory is read at {bandwidth / 1e9:.1f} GB/s here; one token reads {gigabytes(speeds[0].weights_read or 0)} of weights.")
    if peak is not None:
        print(f"Peak memory of a whole process that answers once: {gigabytes(peak.answer)}.")
    print(f"\n{speed_table(speeds, bandwidth)}")


@app.command("memory", epilog=MEMORY_EXAMPLE)
def memory(
    model: Model = None,
    shape: Shape = None,
    layers: Layers = None,
    precision: Annotated[list[str] | None, typer.Option(help="fp32, bf16, int8 or int4; again for more. Default: all.")] = None,
    prompt: Prompt = 600,
    new_tokens: NewTokens = 33,
    measure: Annotated[bool, typer.Option("--measure", help="Also run each precision in a process of its own.")] = False,
    train: Annotated[Path | None, typer.Option(help="A recipe: what its stage takes to train, instead of the published stages.")] = None,
    as_json: Json = False,
) -> None:
    """Work out what a model takes to run, and to train on a GPU of 24 GB, from its configuration: nothing is downloaded."""
    from salticid.bench.child import measure_peak
    from salticid.bench.machine import describe_machine, head
    from salticid.bench.memory import footprint, footprints
    from salticid.bench.prompt import check_room
    from salticid.bench.report import memory_table, memory_values, training_table, training_values
    from salticid.bench.subject import Subject
    from salticid.bench.training import STAGES, training_memory
    from salticid.cli.session import quiet

    subject = Subject(model, shape, layers)
    config = subject.config()
    check_room(config, prompt, new_tokens)
    with quiet():
        found, refused = footprints(config, prompt + new_tokens) if not precision else ([], {})
        found += [footprint(config, name, prompt + new_tokens) for name in precision or ()]
        count = _set_threads(None)
        peaks = {each.precision: measure_peak(subject, each.precision, prompt, new_tokens, count) for each in found} if measure else {}
        pairs = [(config, stage) for stage in STAGES.get(str(shape), ())] if train is None else [_recipe_stage(train, config)]
        trained = [training_memory(changed, stage) for changed, stage in pairs]
    facts = describe_machine()
    if as_json:
        values = {"machine": facts, "model": subject.name, "tokens": prompt + new_tokens, "inference": memory_values(found, peaks)}
        print(json.dumps(values | {"refused": refused, "training": training_values(trained)}, indent=2))
        return
    print(f"{head(facts)}\n")
    print(f"{subject.name}: to answer {prompt} tokens with {new_tokens}.\n\n{memory_table(found, peaks)}")
    for name, reason in refused.items():
        print(f"\n{name}: {reason}.")
    if trained:
        print("\nTo train, with frozen weights in bfloat16 and learning ones in float32:\n")
        print(training_table(trained))


@app.command("experts", epilog=EXPERTS_EXAMPLE)
def experts(
    shape: Annotated[list[str] | None, typer.Option(help="Whose layer; again for more. Default: phi-2 and nano.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="fp32, bf16, int8 or int4; again for more. Default: bf16.")] = None,
    prompt: Prompt = 600,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds for one token; a quarter of them for the prompt.")] = 20,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Time one layer of experts beside the dense network it is made of, for one token and for a prompt."""
    from salticid.bench.experts import time_experts
    from salticid.bench.machine import describe_machine, head
    from salticid.bench.report import experts_table, experts_values
    from salticid.bench.subject import Subject, check_precision
    from salticid.cli.session import quiet

    subjects = [Subject(shape=name) for name in shape or ("phi-2", "nano")]
    for name in precision or ():
        check_precision(name)
    configs = {subject.name: subject.config() for subject in subjects}
    _set_threads(threads)
    with quiet():
        timed = {
            name: [time for each in precision or ("bf16",) for time in time_experts(config, each, prompt, rounds)]
            for name, config in configs.items()
        }
    facts = describe_machine()
    if as_json:
        print(json.dumps({"machine": facts, "prompt_tokens": prompt, "layers": {n: experts_values(t) for n, t in timed.items()}}, indent=2))
        return
    print(head(facts))
    for name, times in timed.items():
        print(f"\nOne layer of {name}; median (fastest-slowest), a prompt of {prompt} tokens.\n\n{experts_table(times)}")


@app.command("kernels", epilog=KERNELS_EXAMPLE)
def kernels(
    shape: Annotated[list[str] | None, typer.Option(help="Whose matrices; again for more. Default: phi-2 and nano.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="fp32, bf16, int8 or int4; again for more. Default: all.")] = None,
    rows: Annotated[int, typer.Option(min=2, help="Rows of the prompt.")] = 600,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds for one row; a quarter of them for the prompt.")] = 20,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Time single matrix products by every kernel, beside the speed at which this machine reads memory."""
    from salticid.bench.bandwidth import read_bandwidth
    from salticid.bench.kernels import shapes_of, time_kernels
    from salticid.bench.machine import describe_machine, head
    from salticid.bench.report import kernel_table, kernel_values
    from salticid.bench.subject import PRECISIONS, Subject, check_precision

    names = precision or PRECISIONS
    for name in names:
        check_precision(name)
    shapes = {each: None for name in shape or ("phi-2", "nano") for each in shapes_of(Subject(shape=name).config())}
    _set_threads(threads)
    bandwidth = read_bandwidth()
    times = []
    for each in shapes:
        for name in names:
            _progress(f"{each[0]}x{each[1]}, {name}")
            times += time_kernels(each, name, rows, rounds)
    facts = describe_machine()
    if as_json:
        print(json.dumps({"machine": facts, "bandwidth": bandwidth, "kernels": kernel_values(times, bandwidth)}, indent=2))
        return
    print(f"{head(facts)}\n\nMemory is read at {bandwidth / 1e9:.1f} GB/s here; medians.\n\n{kernel_table(times, bandwidth)}")


def _recipe_stage(path: Path, config: Any) -> tuple[Any, Any]:
    """The model as a recipe changes it, and the stage that it trains, on its longest examples."""
    from salticid.bench.training import Stage
    from salticid.train.recipe import StageRecipe, read_recipe

    recipe = read_recipe(path, StageRecipe)
    if recipe.experts is not None:
        config = type(config)(**config.to_dict() | {"experts": recipe.experts.options})
    learns: dict[str, list[str] | None] = {str(name): part.only for name, part in recipe.train.items()}
    if recipe.lora is None:
        return config, Stage(recipe.name, learns, recipe.data.max_length, recipe.data.max_length // 4)
    if recipe.lora.experts:
        raise InputError(f"{path}: what LoRA beside experts takes is not worked out yet; measure it with a short run")
    learns |= {"language_model": learns.get("language_model") or []}
    targets = tuple(rf"(^|\.){target}$" for target in recipe.lora.targets)
    return config, Stage(recipe.name, learns, recipe.data.max_length, recipe.data.max_length // 4, targets, recipe.lora.rank)


def _set_threads(threads: int | None) -> int:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def _progress(text: str) -> None:
    """One line on standard error that is written over, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r{text:60}", end="", file=sys.stderr, flush=True)
