"""Where each token of a text stands, and what it sees: 2-D positions and the prefix mask.

The context is all before the first start token. Its tokens have positions 0, 1, 2, ... and 0 in the
second row, and see each other. From the start token on, all stand at the blank that is filled and
count 1, 2, 3, ... in the second row, and see what came before. Official code: ``get_position_ids``
and ``get_masks`` of modeling_chatglm.py, ``_pad`` of tokenization_chatglm.py.
"""

from __future__ import annotations

import torch

from glimmer.errors import InvalidParameterError


def make_positions(
    input_ids: torch.Tensor,
    padding_mask: torch.Tensor | None,
    start_id: int,
    blank_ids: tuple[int, ...],
) -> torch.Tensor:
    """int64 [batch, 2, tokens] of ``input_ids`` [batch, tokens], 0 where ``padding_mask`` is 0.

    Of ``blank_ids`` the first that a text holds is its blank.

    Raises:
        InvalidParameterError: a text without start token or blank.
    """
    real = torch.ones_like(input_ids, dtype=torch.bool)
    if padding_mask is not None:
        real = padding_mask.to(input_ids.device).bool()
    index = real.long().cumsum(-1) - 1
    start, has_start = _first(index, real & (input_ids == start_id))
    blank = torch.zeros_like(start)
    has_blank = torch.zeros_like(has_start)
    for blank_id in reversed(blank_ids):
        place, found = _first(index, real & (input_ids == blank_id))
        blank = torch.where(found, place, blank)
        has_blank |= found
    if not bool((has_start & has_blank).all()):
        lacking = f"start token ({start_id})"
        if bool(has_start.all()):
            lacking = f"blank ({' or '.join(map(str, blank_ids))})"
        raise InvalidParameterError(
            f"A text of this network needs a blank and, behind it, a start token, but one of these "
            f"has no {lacking}. The tokenizer adds both; or give position_ids. A prompt must come "
            "in one piece, since its tokens see those that come later."
        )
    in_context = index < start
    places = torch.where(in_context, index, blank)
    blocks = torch.where(in_context, 0, index - start + 1)
    return torch.stack([places, blocks], dim=1).masked_fill(~real[:, None], 0)


def next_positions(position_ids: torch.Tensor, count: int) -> torch.Tensor:
    """Of ``count`` more tokens: they stay at the blank. [batch, 2, count]"""
    last = position_ids[..., -1:]
    steps = torch.arange(1, count + 1, device=last.device, dtype=last.dtype)
    return torch.cat([last[:, :1].expand(-1, 1, count), last[:, 1:] + steps], dim=1)


def stay_at_blank(position_ids: torch.Tensor) -> torch.Tensor:
    """``position_ids`` [batch, 2, tokens] in which every token that is not the first at its blank
    stands where the first does."""
    places, blocks = position_ids.unbind(1)
    index = torch.arange(places.shape[-1], device=places.device).expand_as(places)
    first = torch.where(blocks > 1, 0, index).cummax(-1).values
    return torch.stack([places.gather(-1, first), blocks], dim=1)


def make_mask(
    position_ids: torch.Tensor, padding_mask: torch.Tensor | None, past_length: int
) -> torch.Tensor | None:
    """bool [batch, 1, tokens, past_length + tokens], True where a token (row) sees another; None if
    a single token sees all.

    ``padding_mask`` [batch, past_length + tokens] is 0 at what no token sees.

    Raises:
        InvalidParameterError: tokens of the context come behind others that are in the cache.
    """
    batch, _, length = position_ids.shape
    device = position_ids.device
    if past_length and length == 1:
        return None if padding_mask is None else padding_mask[:, None, None].bool().to(device)
    rows = torch.arange(past_length, past_length + length, device=device)[:, None]
    columns = torch.arange(past_length + length, device=device)
    seen = (columns <= rows).expand(batch, -1, -1)
    in_context = position_ids[:, 1] == 0
    if not past_length:
        seen = seen | in_context[:, None]
    elif bool(in_context.any()):
        raise InvalidParameterError(
            "A prompt of this network must be computed in one step, since its tokens see those "
            "that come later; leave prefill_chunk_size out, and begin each prompt without a cache."
        )
    if padding_mask is not None:
        # A padding row sees itself: softmax over nothing would be NaN.
        seen = (seen & padding_mask[:, None].bool().to(device)) | (columns == rows)
    return seen[:, None]


def _first(index: torch.Tensor, where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``index`` at the first True of each row of ``where``, and whether there is one; [batch, 1]"""
    place = where.long().argmax(-1, keepdim=True)
    return index.gather(-1, place), where.any(-1, keepdim=True)
