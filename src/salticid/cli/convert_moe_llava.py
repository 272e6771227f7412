"""salticid convert moe-llava: MoE-LLaVA's checkpoints to model folders, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salticid.errors import InputError

EXAMPLE = "Example:  salticid convert moe-llava MoE-LLaVA-Phi2-2.7B-4e --vision clip-vit-large-patch14-336 --out models/moe-llava-phi2"


def moe_llava(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of a checkpoint: config.json and weights, .bin or .safetensors.")],
    out: Annotated[Path, typer.Option(help="New model folder; with --to-upstream, new folder in upstream's form.")],
    vision: Annotated[Path | None, typer.Option(help="Folder of the CLIP or SigLIP; replaces the tower inside the checkpoint.")] = None,
    language: Annotated[Path | None, typer.Option(help="Folder of the language model, for a stage-1 checkpoint.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer, where the checkpoint has none.")] = None,
    routing: Annotated[
        str,
        typer.Option(help="deepspeed: a full expert turns tokens away, as upstream. dropless: it never does."),
    ] = "deepspeed",
    to_upstream: Annotated[bool, typer.Option("--to-upstream", help="The way back: SRC is a converted model folder.")] = False,
) -> None:
    """Convert MoE-LLaVA, stages 1 to 3, with Phi, StableLM, the first Qwen or Mistral; prints the folder, and what is in it."""
    from salticid.checkpoints.moe_llava_folder import convert_moe_llava_folder, export_moe_llava_folder
    from salticid.cli.session import quiet

    if to_upstream:
        if vision or language or tokenizer:
            raise InputError("--to-upstream takes a model folder and --out alone; leave out --vision, --language and --tokenizer")
        with quiet():
            export_moe_llava_folder(source, out)
        print(out)
        return
    with quiet():
        config = convert_moe_llava_folder(source, out, vision=vision, language=language, tokenizer=tokenizer, routing=routing)
    experts = config.experts
    kind = f"{experts['experts']} experts in {len(experts['layers'])} layers, routing {experts['routing']}" if experts else "dense"
    print(out)
    print(f"{config.text_config.model_type}, {kind}, {config.vision_config.image_size} px, template {config.template}")
