"""Masks as text; masks, schedules and packed rows as SVG.

A picture is a string that depends on its arguments alone and needs nothing beside it.
It brings its own background, so it can be read on light and on dark pages.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate, compress, pairwise, product, repeat

from fastslow._typing import Grid, MaskMod
from fastslow.frames import FrameSchedule, frame_windows, tokens_per_frame
from fastslow.layouts import TokenLayout, visible_keys
from fastslow.masks import dense_mask

_Number = int | float
"""A length, in pixels or in cells."""

_STYLE = """
text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: #374151 }
.centred { text-anchor: middle }
.paper { fill: #ffffff }
.cells { stroke: #ffffff }
.hidden { fill: #f1f3f5 }
.padding { fill: #cdd2d8 }
.text { fill: #7b8794 }
.slow { fill: #2f6fb7 }
.fast { fill: #c46f0c }
@media (prefers-color-scheme: dark) {
  text { fill: #d3d8de }
  .paper { fill: #1b1e23 }
  .cells { stroke: #1b1e23 }
  .hidden { fill: #262a31 }
  .padding { fill: #4a515b }
  .fast { fill: #e3912f }
}
"""
_MARGIN = 14
_LINE = 18
_FRAME_SIDE = 64
_MASK_SIDE = 400


def render_mask(mask_mod: MaskMod, num_tokens: int) -> str:
    """Draw a mask as text, one line per query: ``#`` is visible, ``.`` hidden.

    Args:
        mask_mod: The rule, its tensors on the CPU.
        num_tokens: Length of the row.

    Returns:
        The picture, without a newline at its end.

    Laws:
        round_trip: reading ``#`` as True and ``.`` as False gives ``dense_mask`` back:
            ``[[c == '#' for c in line] for line in text] == mask``

    Example:
        >>> import torch
        >>> from fastslow import frame_causal_mask
        >>> print(render_mask(frame_causal_mask(torch.tensor([0, 1, 1, 2])), 4))
        #...
        ###.
        ###.
        ####
    """
    rows = dense_mask(mask_mod, num_tokens).tolist()
    return "\n".join("".join("#" if seen else "." for seen in row) for row in rows)


def schedule_svg(grid: Grid, schedule: FrameSchedule) -> str:
    """Draw the frames of a clip, each cut into the windows that become its tokens.

    Under each frame stands how many tokens it keeps.

    Args:
        grid: Height and width of every frame before pooling, in tokens.
        schedule: How the frames are pooled, in cells of ``grid``.

    Returns:
        An SVG document.

    Raises:
        ValueError: As ``frame_windows`` does.

    Laws:
        one_window_per_token: a frame has as many windows as ``tokens_per_frame``
            counts: ``#rectangles == tokens_per_frame(grid, s)[t]``
        tiles: under plain strides the windows of a frame cover every cell of the grid
            exactly once

    Example:
        >>> from fastslow import build_schedule
        >>> schedule_svg((8, 8), build_schedule(3)).count('class="window"')
        9
    """
    height, width = grid
    counts = tokens_per_frame(grid, schedule)
    scale = _FRAME_SIDE / max(grid)
    top, step = 2 * _MARGIN + _LINE, width * scale + _MARGIN
    bottom = top + height * scale
    before = height * width * schedule.num_frames
    caption = f"{len(counts)} frames, {sum(counts)} tokens, {before} before pooling"
    body = [_text(_MARGIN, _MARGIN + _LINE - 5, caption)]
    for t, frame in enumerate(schedule.frames):
        kind, left = "slow" if frame.is_slow else "fast", _MARGIN + t * step
        rows, columns = frame_windows(grid, frame, edge=schedule.edge)
        places = product(rows, columns)
        windows = (
            _rect("window", x, y, right, below)
            for (y, below), (x, right) in compress(places, frame.keep or repeat(True))
        )
        body.append(_cells(f"frame {kind}", left, top, scale, windows))
        middle = left + width * scale / 2
        body.append(_text(middle, bottom + _LINE, counts[t], "centred"))
        body.append(_text(middle, bottom + 2 * _LINE, kind, "centred"))
    return _document(
        max(_MARGIN + len(counts) * step, _width_of(caption)),
        bottom + 2 * _LINE + _MARGIN,
        f"Schedule {schedule}",
        caption,
        body,
    )


def layout_svg(layout: TokenLayout) -> str:
    """Draw a packed row token by token, with the integers that belong to each.

    Segments are set apart.

    Args:
        layout: The packed row; about 30 tokens fit a page.

    Returns:
        An SVG document.

    Laws:
        one_cell_per_token: as many cells as tokens, each of its token's kind: ``#cells
            == len(layout.input_ids)``
        numbers: the lines are ``segment_ids``, ``frame_ids``, ``causal_ranks`` and the
            bounds of ``visible_keys``, with ``-`` for -1

    Example:
        >>> from fastslow import TextSpan, build_layout
        >>> row = build_layout([[TextSpan(token_ids=(1, 2))]], video_token_id=9)
        >>> layout_svg(row).startswith("<svg")
        True
    """
    visible = visible_keys(layout)
    lines = {
        "segment": layout.segment_ids,
        "frame": layout.frame_ids,
        "rank": layout.causal_ranks,
        "start": visible.start,
        "stop": visible.stop,
    }
    kinds, places = _kinds(layout), _places(layout)
    side, left, top = 24, 76, 2 * _MARGIN + _LINE
    cells = (
        _rect(kind, place, 0, place + 1, 1)
        for kind, place in zip(kinds, places, strict=True)
    )
    legend, width = _legend(kinds)
    body = [legend, _cells("tokens", left, top, side, cells)]
    for number, (name, values) in enumerate(lines.items(), start=1):
        y = top + side + number * _LINE
        numbers = (
            _text(left + (place + 0.5) * side, y, "-" if value < 0 else value)
            for place, value in zip(places, values.tolist(), strict=True)
        )
        body.append(_text(_MARGIN, y, name))
        body.append(f'<g class="centred {name}">{"".join(numbers)}</g>')
    return _document(
        max(left + (places[-1] + 1) * side + _MARGIN, width),
        top + side + len(lines) * _LINE + _MARGIN,
        f"Packed row of {len(kinds)} tokens",
        _counts(kinds),
        body,
    )


def mask_svg(layout: TokenLayout) -> str:
    """Draw who reads whom: a row for each query, a column for each key.

    A cell is coloured where the query may read the key, in the colour of the key. The
    strips at the top and at the left are the row itself. Segments are set apart.

    Args:
        layout: The packed row; about 120 tokens fit a page.

    Returns:
        An SVG document.

    Laws:
        round_trip: the rectangles of ``pairs`` cover what is True in ``dense_mask``:
            ``union of rectangles == dense_mask``
        disjoint: they do not overlap: ``sum of areas == dense_mask.sum()``
        one_cell_per_token: each strip has as many cells as the row has tokens

    Example:
        >>> from fastslow import TextSpan, build_layout
        >>> row = build_layout([[TextSpan(token_ids=(1, 2))]], video_token_id=9)
        >>> mask_svg(row).startswith("<svg")
        True
    """
    kinds, places = _kinds(layout), _places(layout)
    extent = places[-1] + 1
    scale = min(max(_MASK_SIDE / extent, 4), 16)
    strip = scale + 4
    left, top = _MARGIN + strip, 2 * _MARGIN + _LINE + strip
    legend, width = _legend(kinds)
    axes = "row: query, column: key"
    tokens = list(zip(kinds, places, strict=True))
    across = (_rect(kind, place, 0, place + 1, 1) for kind, place in tokens)
    down = (_rect(kind, 0, place, 1, place + 1) for kind, place in tokens)
    everything = [_rect("hidden", 0, 0, extent, extent)]
    side = extent * scale
    body = [
        legend,
        _text(width, _MARGIN + 13, axes),
        _cells("background", left, top, scale, everything),
        _cells("pairs", left, top, scale, _pairs(layout, kinds, places)),
        _cells("keys", left, top - strip, scale, across),
        _cells("queries", left - strip, top, scale, down),
    ]
    return _document(
        max(left + side, width + _width_of(axes) - 2 * _MARGIN) + _MARGIN,
        top + side + _MARGIN,
        f"Mask of {len(kinds)} tokens",
        f"{_counts(kinds)}. Coloured is what a query may read",
        body,
    )


def _pairs(
    layout: TokenLayout, kinds: Sequence[str], places: Sequence[int]
) -> Iterable[str]:
    """Draw the visible pairs, one rectangle for a run of queries and a run of keys."""
    visible = visible_keys(layout)
    intervals = list(zip(visible.start.tolist(), visible.stop.tolist(), strict=True))
    segments, frames = layout.segment_ids.tolist(), layout.frame_ids.tolist()
    key_runs = _runs(list(zip(kinds, segments, frames, strict=True)))
    for top, bottom in _runs(intervals):
        begin, end = intervals[top]
        for left, right in key_runs:
            first, last = max(left, begin), min(right, end) - 1
            if first <= last:
                yield _rect(
                    kinds[left],
                    places[first],
                    places[top],
                    places[last] + 1,
                    places[bottom - 1] + 1,
                )


def _kinds(layout: TokenLayout) -> list[str]:
    """Say of each token whether it is text, slow, fast or padding."""
    columns = layout.segment_ids, layout.frame_ids, layout.is_slow
    return [
        "padding"
        if segment < 0
        else "text"
        if frame < 0
        else "slow"
        if slow
        else "fast"
        for segment, frame, slow in zip(*(c.tolist() for c in columns), strict=True)
    ]


def _places(layout: TokenLayout) -> list[int]:
    """Give the cell at which each token is drawn: one is left free between segments."""
    segments = layout.segment_ids.tolist()
    gaps = accumulate(before != after for before, after in pairwise(segments))
    return [token + gap for token, gap in enumerate([0, *gaps])]


def _runs(values: Sequence[object]) -> list[tuple[int, int]]:
    """Cut a sequence into runs of equal values, as half-open intervals."""
    cuts = [i for i in range(1, len(values)) if values[i] != values[i - 1]]
    return list(pairwise([0, *cuts, len(values)]))


def _counts(kinds: Sequence[str]) -> str:
    """Count the kinds that occur."""
    return ", ".join(f"{kind} {count}" for kind, count in Counter(kinds).items())


def _legend(kinds: Sequence[str]) -> tuple[str, _Number]:
    """Name the kinds that occur, with their counts; give where the line goes on."""
    x: _Number = _MARGIN
    parts = []
    for kind, count in Counter(kinds).items():
        words = f"{kind} {count}"
        parts.append(_rect(kind, x, _MARGIN + 2, x + 12, _MARGIN + 14))
        parts.append(_text(x + 18, _MARGIN + 13, words))
        x += _width_of(words) + 4
    return f'<g class="legend">{"".join(parts)}</g>', x


def _cells(
    kind: str, left: _Number, top: _Number, scale: _Number, shapes: Iterable[str]
) -> str:
    """Draw shapes whose unit is one cell."""
    place = f"translate({left:g} {top:g}) scale({scale:g})"
    start = f'<g class="cells {kind}" stroke-width="{1 / scale:.3g}"'
    return f'{start} transform="{place}">{"".join(shapes)}</g>'


def _rect(
    kind: str, left: _Number, top: _Number, right: _Number, bottom: _Number
) -> str:
    """Draw a rectangle by its edges."""
    return (
        f'<rect class="{kind}" x="{left:g}" y="{top:g}" '
        f'width="{right - left:g}" height="{bottom - top:g}"/>'
    )


def _text(x: _Number, y: _Number, words: object, kind: str = "label") -> str:
    """Write words at a baseline."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{words}</text>'


def _width_of(words: str) -> _Number:
    """Estimate the width of a line of text, margins included."""
    return 2 * _MARGIN + 6.5 * len(words)


def _document(
    width: _Number, height: _Number, title: str, words: str, body: Iterable[str]
) -> str:
    """Put a picture together; title and words stand for it where it is not seen."""
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{title}</title>",
        f"<desc>{words}</desc>",
        f"<style>{_STYLE}</style>",
        _rect("paper", 0, 0, width, height),
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
