"""The one place where image tokens meet words: placeholders are counted against features here and nowhere else."""

from __future__ import annotations

import torch

from salticid.errors import InputError


def merge_image_features(
    inputs_embeds_BTD: torch.Tensor, input_ids_BT: torch.Tensor, image_features_IND: torch.Tensor, image_token_id: int
) -> torch.Tensor:
    """Put projected image tokens where the placeholders stand, row by row, left to right.

    B batch, T tokens, D width, I images of the whole batch, N tokens of one image.

    Returns:
        A new tensor (B, T, D).

    Raises:
        InputError: the number of placeholders differs from the number of image tokens.
    """
    placeholder_BT = input_ids_BT == image_token_id
    features_MD = image_features_IND.reshape(-1, image_features_IND.shape[-1]).to(inputs_embeds_BTD)
    if not torch.compiler.is_compiling():
        _check_count(int(placeholder_BT.sum()), *image_features_IND.shape[:2])
    return inputs_embeds_BTD.masked_scatter(placeholder_BT.unsqueeze(-1).to(features_MD.device), features_MD)


def refuse_lone_placeholders(input_ids_BT: torch.Tensor, image_token_id: int) -> None:
    """Raise `InputError` where a text marks photos and none is given: the model would read placeholders as if they were words."""
    _check_count(int((input_ids_BT == image_token_id).sum()), 0, 0)


def repeat_photos(photos: torch.Tensor, input_ids_BT: torch.Tensor, image_token_id: int, tokens: int, times: int) -> torch.Tensor:
    """Photos (I, ...) of B rows to those of B * times rows, each row `times` times in a row, as beam search wants them.

    Args:
        tokens: placeholders that one photo takes.

    Raises:
        InputError: the number of placeholders differs from the number of image tokens.
    """
    placeholders_B = (input_ids_BT == image_token_id).sum(dim=1)
    _check_count(int(placeholders_B.sum()), photos.shape[0], tokens)
    rows = photos.split((placeholders_B // tokens).tolist())
    return torch.cat([row for row in rows for _ in range(times)])


def _check_count(placeholders: int, photos: int, tokens: int) -> None:
    if placeholders != photos * tokens:
        raise InputError(
            f"the text holds {placeholders} image placeholders but the photos give {photos * tokens} image tokens "
            f"({photos} photos of {tokens}); let the processor write the placeholders"
        )
