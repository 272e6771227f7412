"""salticid convert: published checkpoints to model folders, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salticid.cli import convert_moe_llava
from salticid.errors import InputError

EXAMPLE = (
    "Example:  salticid convert tinygpt-v --checkpoint TinyGPT-V_for_Stage4.pth --language phi-2 --vision eva_vit_g.pth "
    "--qformer blip2_pretrained_flant5xxl.pth --out models/tinygpt-v"
)

app = typer.Typer(help="Published checkpoints to model folders, and back.", no_args_is_help=True)
app.command("moe-llava", epilog=convert_moe_llava.EXAMPLE)(convert_moe_llava.moe_llava)


@app.callback()
def options() -> None:
    """Published checkpoints to model folders, and back."""


@app.command("tinygpt-v", epilog=EXAMPLE)
def tinygpt_v(
    out: Annotated[Path, typer.Option(help="New model folder; with --to-upstream, new .pth or .safetensors file.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint of a stage, .pth or .safetensors.")] = None,
    language: Annotated[Path | None, typer.Option(help="Folder of Phi-2, with its tokenizer.")] = None,
    vision: Annotated[Path | None, typer.Option(help="eva_vit_g.pth.")] = None,
    qformer: Annotated[Path | None, typer.Option(help="BLIP-2's file with the Q-Former, blip2_pretrained_flant5xxl.pth.")] = None,
    start: Annotated[bool, typer.Option("--start", help="No checkpoint: make what stage 1 starts from, with new linear layers.")] = False,
    merge_lora: Annotated[bool, typer.Option("--merge-lora", help="Add the LoRA to the weights, so that PEFT is not needed.")] = False,
    to_upstream: Annotated[Path | None, typer.Option(help="The way back: a converted model folder.")] = None,
    template: Annotated[str | None, typer.Option(help="How conversations are written; default, as the stage was trained.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Side of the photos in pixels; default 224, and 448 for stage 4.")] = None,
    lora_alpha: Annotated[float, typer.Option(help="Of the LoRA; no file tells it.")] = 16,
    vision_layers: Annotated[int, typer.Option(min=1, help="Blocks of the vision tower that are used.")] = 39,
    vision_heads: Annotated[int, typer.Option(min=1, help="Attention heads of the vision tower.")] = 16,
    qformer_heads: Annotated[int, typer.Option(min=1, help="Attention heads of the Q-Former.")] = 12,
) -> None:
    """Convert TinyGPT-V, stages 1 to 4, from the authors' four files; prints the folder, and what no file held."""
    files = {"checkpoint": checkpoint, "language": language, "vision": vision, "qformer": qformer}
    given = {name: path for name, path in files.items() if path is not None}
    if to_upstream is not None:
        if given:
            raise InputError(f"--to-upstream takes a model folder and --out alone; leave out --{', --'.join(given)}")
        from salticid.checkpoints.tinygpt_v_export import export_tinygpt_v

        export_tinygpt_v(to_upstream, out)
        print(out)
        return
    if start and checkpoint is not None:
        raise InputError("--start makes a model without a checkpoint; leave out --checkpoint")
    if missing := [name for name in files if name not in given and not (start and name == "checkpoint")]:
        raise InputError(f"--{', --'.join(missing)} is missing; see salticid convert tinygpt-v --help for the four files")
    from salticid.checkpoints.tinygpt_v import TinyGPTVOptions, convert_tinygpt_v

    options = TinyGPTVOptions(
        vision_layers=vision_layers,
        vision_heads=vision_heads,
        qformer_heads=qformer_heads,
        lora_alpha=lora_alpha,
        image_size=image_size,
        template=template,
    )
    parts = {name: path for name, path in given.items() if name != "checkpoint"}
    report = convert_tinygpt_v(checkpoint, **parts, out=out, merge=merge_lora, options=options)
    print(out)
    print(f"stage {report.stage}, {report.image_size} px, LoRA {report.lora}, {len(report.dropped)} tensors left out by rule")
    if report.new_norms:
        print(f"{len(report.new_norms)} weights of normalisations were in no file and start as identities, such as {report.new_norms[0]}")
