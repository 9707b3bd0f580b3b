"""Laws of masks, checked on drawn rows."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, NoReturn, get_args

import torch
from hypothesis.strategies import SearchStrategy
from jaxtyping import Bool
from torch import Tensor

from fastslow._typing import MaskMod
from fastslow.masks import dense_mask
from fastslow.plotting import render_mask
from fastslow.testing.checks.search import check_laws, smallest
from fastslow.testing.strategies import (
    FramedRow,
    framed_rows,
    unordered_framed_rows,
)

MaskLaw = Literal[
    "reflexive",
    "transitive",
    "no_cross_segment",
    "padding",
    "causal",
    "packs_block_diagonally",
]
"""The laws of ``check_mask``."""

MakeMask = Callable[[Tensor, Tensor, Tensor], MaskMod | Bool[Tensor, "queries keys"]]
"""From ``causal_ranks``, ``segment_ids`` and ``frame_ids`` to a rule or a matrix."""

_ANY_ORDER = (
    "Rows are drawn with ranks in any order; a mask that needs them sorted takes "
    "rows=strategies.framed_rows()."
)


def check_mask(
    make_mask: MakeMask,
    *,
    rows: SearchStrategy[FramedRow] | None = None,
    laws: Iterable[MaskLaw] = get_args(MaskLaw),
) -> None:
    """Hold a mask of your own to the laws of ``frame_causal_mask``.

    Rows are drawn, the mask of each is made and read as a matrix, and the smallest row
    that breaks a law is shown. The laws:

    - ``reflexive``: every real token reads itself;
    - ``transitive``: what a token reads through another, it may read itself, so no
      depth of layers adds anything;
    - ``no_cross_segment``: no token reads another segment;
    - ``padding``: padding reads nothing, and nothing reads padding;
    - ``causal``: no token reads a later rank, so that without other segments no depth
      of layers reaches the future;
    - ``packs_block_diagonally``: a segment's tokens read each other in a packed row as
      they do alone.

    Windows over frames are not transitive, and need not be where they are ``causal``:
    leave that law out for them.

    Args:
        make_mask: Takes ``causal_ranks``, ``segment_ids`` (-1 is padding) and
            ``frame_ids`` (-1 is text) of a row. Gives a rule as FlexAttention takes
            it, which has to broadcast, or a boolean matrix with a line for each query.
        rows: What is drawn; ``unordered_framed_rows()`` by default. For a mask that
            needs ranks sorted in contiguous segments, ``framed_rows()``.
        laws: Names of the laws; all by default.

    Raises:
        AssertionError: If a law is broken; the message names the law and the tokens,
            and shows the row and its mask.
        ValueError: If a law is unknown, ``make_mask`` is no function, or the mask of a
            row is no rule and no such matrix.

    Example:
        >>> from fastslow import frame_causal_mask
        >>> check_mask(lambda ranks, segments, _: frame_causal_mask(ranks, segments))
    """
    if not callable(make_mask):
        raise ValueError(
            f"make_mask is a {type(make_mask).__name__}; it must be a function of "
            "causal_ranks, segment_ids and frame_ids"
        )
    drawn = unordered_framed_rows() if rows is None else rows
    laws = tuple(laws)
    check_laws(laws, _BREACHES)

    broken = dict[MaskLaw, FramedRow]()

    def look(row: FramedRow) -> bool:
        mask = _matrix(make_mask, row)
        for law in laws:
            if _BREACHES[law](make_mask, row, mask):
                broken.setdefault(law, row)
        return False  # so that all rows are looked at

    try:
        smallest(drawn, look)
    except Exception as error:
        if rows is None and _is_made(make_mask, framed_rows()):
            error.add_note(_ANY_ORDER)
        raise
    for law in laws:
        if law in broken:
            breaks = partial(_breaks, law, make_mask)
            row = smallest(drawn, breaks) or broken[law]
            hint = ""
            if rows is None and smallest(framed_rows(), breaks) is None:
                hint = f"\n{_ANY_ORDER}"
            _fail(make_mask, law, row, hint)


def _is_made(make_mask: MakeMask, rows: SearchStrategy[FramedRow]) -> bool:
    """Tell whether a mask is made of rows without an exception."""
    try:
        smallest(rows, lambda row: _matrix(make_mask, row) is None)
    except Exception:
        return False
    return True


def _breaks(law: MaskLaw, make_mask: MakeMask, row: FramedRow) -> str:
    """Say how the mask of a row breaks a law; nothing if it does not."""
    return _BREACHES[law](make_mask, row, _matrix(make_mask, row))


def _fail(make_mask: MakeMask, law: MaskLaw, row: FramedRow, hint: str) -> NoReturn:
    """Show how the mask of a row breaks a law."""
    mask = _matrix(make_mask, row)
    names = ("causal_ranks", "segment_ids", "frame_ids")
    shown = "".join(
        f"  {name:12} = {values.tolist()}\n"
        for name, values in zip(names, row, strict=True)
    )
    picture = render_mask(lambda b, h, q_idx, kv_idx: mask[q_idx, kv_idx], len(mask))
    lines = "".join(f"  {line}\n" for line in picture.splitlines())
    raise AssertionError(
        f"the mask breaks the law {law}: {_BREACHES[law](make_mask, row, mask)}\n\n"
        "The smallest row that shows it, and its mask, a line for each query, # for "
        f"what it reads:\n{shown}{lines}{hint}"
    )


def _matrix(make_mask: MakeMask, row: FramedRow) -> Bool[Tensor, "tokens tokens"]:
    """Make the mask of a row, as a matrix."""
    tokens = len(row[0])
    made = make_mask(*(values.clone() for values in row))
    if not (isinstance(made, Tensor) or callable(made)):
        raise ValueError(
            f"make_mask gives a {type(made).__name__}; it must give a rule, as "
            "interval_mask makes of KeyIntervals, or a boolean matrix"
        )
    mask = made if isinstance(made, Tensor) else dense_mask(made, tokens)
    if mask.dtype != torch.bool or mask.shape != (tokens, tokens):
        raise ValueError(
            f"the mask is {mask.dtype} of shape {tuple(mask.shape)} but the row has "
            f"{tokens} tokens; it must be torch.bool of shape {(tokens, tokens)}"
        )
    return mask


def _first(pairs: Bool[Tensor, "queries keys"]) -> tuple[int, int] | None:
    """Give the first marked pair of a query and a key."""
    found = pairs.nonzero()
    return (int(found[0, 0]), int(found[0, 1])) if len(found) else None


def _not_reflexive(make_mask: MakeMask, row: FramedRow, mask: Tensor) -> str:
    pair = _first(torch.diag(~mask.diagonal() & (row[1] >= 0)))
    return f"token {pair[0]} does not read itself" if pair else ""


def _not_transitive(make_mask: MakeMask, row: FramedRow, mask: Tensor) -> str:
    reached = (mask.int() @ mask.int()) > 0
    pair = _first(reached & ~mask)
    if pair is None:
        return ""
    query, key = pair
    between = int((mask[query] & mask[:, key]).nonzero()[0])
    return (
        f"token {query} reads {between} and {between} reads {key}, but {query} may not "
        f"read {key}; through two layers it does"
    )


def _crosses_segments(make_mask: MakeMask, row: FramedRow, mask: Tensor) -> str:
    segments = row[1]
    real = (segments[:, None] >= 0) & (segments >= 0)
    pair = _first(mask & real & (segments[:, None] != segments))
    if pair is None:
        return ""
    query, key = pair
    return (
        f"token {query} of segment {int(segments[query])} reads token {key} of segment "
        f"{int(segments[key])}"
    )


def _reads_padding(make_mask: MakeMask, row: FramedRow, mask: Tensor) -> str:
    padding = row[1] < 0
    pair = _first(mask & (padding[:, None] | padding))
    if pair is None:
        return ""
    query, key = pair
    if padding[query]:
        return f"token {query} is padding and reads token {key}"
    return f"token {query} reads token {key}, which is padding"


def _not_causal(make_mask: MakeMask, row: FramedRow, mask: Tensor) -> str:
    ranks, segments, _ = row
    later = (segments[:, None] == segments) & (ranks[:, None] < ranks)
    pair = _first(mask & later & (segments >= 0))
    if pair is None:
        return ""
    query, key = pair
    return (
        f"token {query} of rank {int(ranks[query])} reads token {key} of rank "
        f"{int(ranks[key])}, its future"
    )


def _packs_otherwise(make_mask: MakeMask, row: FramedRow, mask: Tensor) -> str:
    ranks, segments, frames = row
    for segment in segments[segments >= 0].unique().tolist():
        tokens = (segments == segment).nonzero().flatten()
        first_segment = torch.zeros_like(tokens)
        alone = _matrix(make_mask, (ranks[tokens], first_segment, frames[tokens]))
        packed = mask[tokens][:, tokens]
        pair = _first(alone != packed)
        if pair is not None:
            query, key = (int(tokens[each]) for each in pair)
            reads = ("does not read", "reads")
            return (
                f"token {query} {reads[bool(packed[pair])]} token {key} in this row "
                f"but {reads[bool(alone[pair])]} it where segment {segment} is alone"
            )
    return ""


_BREACHES: dict[MaskLaw, Callable[[MakeMask, FramedRow, Tensor], str]] = {
    "reflexive": _not_reflexive,
    "transitive": _not_transitive,
    "no_cross_segment": _crosses_segments,
    "padding": _reads_padding,
    "causal": _not_causal,
    "packs_block_diagonally": _packs_otherwise,
}
"""Each law, and what says in words how the mask of a row breaks it."""
