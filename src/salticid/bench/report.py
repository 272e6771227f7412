"""What was measured, as Markdown for people and as plain values for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from salticid.bench.child import Peak
from salticid.bench.experts import LayerTime
from salticid.bench.kernels import KernelTime
from salticid.bench.memory import PARTS, Footprint
from salticid.bench.speed import Speed, Spread
from salticid.bench.tables import gigabytes, spread, table
from salticid.bench.training import Training

GPU = 24 * 10**9


def speed_values(speeds: Sequence[Speed], bandwidth: float) -> list[dict[str, Any]]:
    """The first runner is ours. `ratio` is ours over the other's: above one, ours is faster."""
    ours = speeds[0]
    rows = []
    for speed in speeds:
        row: dict[str, Any] = {
            "name": speed.name,
            "prefill_tokens_per_s": asdict(speed.prefill),
            "decode_tokens_per_s": asdict(speed.decode),
        }
        read = speed.bandwidth()
        row |= {"decode_tokens_per_s": asdict(speed.decode), "weights_read": speed.weights_read}
        row |= {"bandwidth_share": None if read is None else read / bandwidth}
        if speed is not ours:
            row["ratio"] = {
                "prefill": ours.prefill.median / speed.prefill.median,
                "decode": ours.decode.median / speed.decode.median,
            }
            row["same_tokens"] = ours.same_tokens(speed)
        rows.append(row)
    return rows


def speed_table(speeds: Sequence[Speed], bandwidth: float) -> str:
    columns = (
        "",
        "prefill, tokens/s",
        "decode, tokens/s",
        "of the bandwidth",
        "salticid to it: prefill",
        "decode",
        "same first tokens",
    )
    rows = []
    for value, speed in zip(speed_values(speeds, bandwidth), speeds, strict=True):
        share, ratio = value["bandwidth_share"], value.get("ratio")
        ratios = (f"{ratio['prefill']:.2f}x", f"{ratio['decode']:.2f}x") if ratio else ("", "")
        same = f"{value['same_tokens']} of {len(speed.tokens)}" if ratio else ""
        rows.append((speed.name, spread(speed.prefill), spread(speed.decode), "" if share is None else f"{share:.0%}", *ratios, same))
    return table(columns, rows)


def memory_values(footprints: Sequence[Footprint], peaks: dict[str, Peak]) -> list[dict[str, Any]]:
    rows = []
    for found in footprints:
        peak = peaks.get(found.precision)
        rows.append(asdict(found) | {"total": found.total, "measured": None if peak is None else asdict(peak)})
    return rows


def memory_table(footprints: Sequence[Footprint], peaks: dict[str, Peak]) -> str:
    columns = ("", *PARTS, "keys and values", "activations", "libraries", "together", *(["measured"] if peaks else []))
    rows = []
    for found in footprints:
        sizes = [*(found.weights[part] for part in PARTS), found.cache, found.activations, found.libraries, found.total]
        sizes += [peaks[found.precision].answer] if found.precision in peaks else []
        rows.append((found.precision, *map(gigabytes, sizes), *([""] if peaks and found.precision not in peaks else [])))
    return table(columns, rows)


def training_values(stages: Sequence[Training], memory: int = GPU) -> list[dict[str, Any]]:
    batches = [{"batch": stage.batch(memory, False), "batch_checkpointed": stage.batch(memory, True)} for stage in stages]
    return [asdict(stage) | {"fixed": stage.fixed} | batch for stage, batch in zip(stages, batches, strict=True)]


def training_table(stages: Sequence[Training], memory: int = GPU) -> str:
    size = f"{memory / 1e9:.0f} GB"
    columns = (
        "stage",
        "learning",
        "weights",
        "gradients",
        "AdamW",
        "together, copies included",
        "each example",
        "checkpointed",
        f"batch in {size}",
        "checkpointed",
    )
    rows = []
    for stage in stages:
        sizes = (stage.weights, stage.gradients, stage.optimizer, stage.fixed, stage.example, stage.example_checkpointed)
        batches = (str(stage.batch(memory, checkpointed) or "none") for checkpointed in (False, True))
        rows.append((stage.stage, f"{stage.learning / 1e6:.1f} M", *map(gigabytes, sizes), *batches))
    return table(columns, rows)


def experts_values(times: Sequence[LayerTime]) -> list[dict[str, Any]]:
    """Milliseconds, and how many times the dense network's they are."""
    dense = {time.precision: time for time in times if time.name == "dense"}
    return [
        asdict(time)
        | {
            "decode_to_dense": _to_dense(time.decode, dense[time.precision].decode),
            "prefill_to_dense": _to_dense(time.prefill, dense[time.precision].prefill),
        }
        for time in times
    ]


def experts_table(times: Sequence[LayerTime]) -> str:
    columns = ("", "precision", "one token, ms", "to dense", "prompt, ms", "to dense", "")
    rows = []
    for value, time in zip(experts_values(times), times, strict=True):
        decode, prefill = (
            _cells(found, value[key]) for found, key in ((time.decode, "decode_to_dense"), (time.prefill, "prefill_to_dense"))
        )
        rows.append((time.name, time.precision, *decode, *prefill, time.note))
    return table(columns, rows)


def _to_dense(own: Spread | None, dense: Spread | None) -> float | None:
    return None if own is None or dense is None else own.median / dense.median


def _cells(found: Spread | None, ratio: float | None) -> tuple[str, str]:
    return ("", "") if found is None or ratio is None else (spread(found), f"{ratio:.2f}x")


def kernel_values(times: Sequence[KernelTime], bandwidth: float) -> list[dict[str, Any]]:
    """Seconds, and the rates that they come to; `bandwidth` in bytes per second."""
    return [
        asdict(time)
        | {
            "weights_per_s": time.weights_per_second,
            "bandwidth_share": time.bytes_per_second / bandwidth,
            "operations_per_s": time.operations_per_second,
        }
        for time in times
    ]


def kernel_table(times: Sequence[KernelTime], bandwidth: float) -> str:
    rows = times[0].rows
    columns = ("matrix", "precision", "kernel", "one row, us", "G weights/s", "of the bandwidth", f"{rows} rows, ms", "TOP/s", "used for")
    cells = []
    for time in times:
        used = " and ".join(name for name, uses in (("decoding", time.decodes), ("prompts", time.prompts)) if uses)
        rates = f"{time.weights_per_second / 1e9:.1f}", f"{time.bytes_per_second / bandwidth:.0%}"
        prompt = f"{time.prompt.median * 1e3:.2f}", f"{time.operations_per_second / 1e12:.2f}"
        name = "x".join(map(str, time.shape))
        cells.append((name, time.precision, time.kernel, f"{time.decode.median * 1e6:.1f}", *rates, *prompt, used))
    return table(columns, cells)
