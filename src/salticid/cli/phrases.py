"""salticid phrases: a model that knows what captions of photos like this one say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "Example:  salticid phrases runs/nano/14_mean data/flickr8k --out runs/nano/17_phrases"


def phrases(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model that captions: embedded name, folder, or Hub id.")],
    folder: Annotated[Path, typer.Argument(metavar="FLICKR8K", help="Folder of the flickr8k reader: photos with captions.")],
    out: Annotated[Path, typer.Option(help="Folder for the model with its phrases, in float32; must not exist yet.")],
    strength: Annotated[float, typer.Option(min=0.0, help="Of what phrases add, beside the language model.")] = 20.0,
) -> None:
    """Fit the phrases that captions of a photo hold, from what the vision tower sees; of held-out photos none. Prints the folder."""
    import salticid.quant  # noqa: F401  lets transformers read folders with small weights
    from salticid.checkpoints.load import load_processor, load_unpacked
    from salticid.checkpoints.lora import save_model
    from salticid.checkpoints.save import new_folder
    from salticid.cli.session import quiet
    from salticid.data.datasets.flickr8k import read_photos
    from salticid.engine.catalog import find_model
    from salticid.train.phrases import fit_phrases
    from salticid.train.taught_captions import see

    source, photos = find_model(model), read_photos(folder)
    with quiet(), new_folder(out) as new:
        loaded, processor = load_unpacked(source), load_processor(source)
        fit_phrases(loaded, processor.tokenizer, [photo.captions for photo in photos], see(source, photos), strength)
        save_model(loaded, new)
        processor.save_pretrained(new)
    print(out)
