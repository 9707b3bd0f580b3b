"""Laws of ``fastslow.plotting``."""

from collections.abc import Sequence
from dataclasses import astuple
from itertools import pairwise
from xml.etree import ElementTree

import torch
from hypothesis import given
from hypothesis import strategies as st

from fastslow import (
    FrameSchedule,
    Grid,
    Span,
    TextSpan,
    TokenLayout,
    VideoSpan,
    build_layout,
    count_tokens,
    frame_causal_mask,
    schedule_from_strides,
)
from fastslow.plotting import layout_svg, mask_svg, render_mask, schedule_svg
from fastslow.testing import reference
from fastslow.testing import strategies as fst

Box = tuple[str, int, int, int, int]
"""Class, left, top, right and bottom of a rectangle, in cells."""


def boxes(picture: str, group: str) -> list[list[Box]]:
    """Read the rectangles of every group of cells that has a class."""
    groups = []
    for element in ElementTree.fromstring(picture).iter():
        if {"cells", group} <= set(element.get("class", "").split()):
            groups.append([read_box(rect) for rect in element])
    return groups


def read_box(rect: ElementTree.Element) -> Box:
    """Read a rectangle by its edges."""
    left, top, width, height = (
        int(rect.attrib[name]) for name in ("x", "y", "width", "height")
    )
    return rect.attrib["class"], left, top, left + width, top + height


def numbers(picture: str, line: str) -> list[int]:
    """Read one line of numbers of a layout's picture."""
    for element in ElementTree.fromstring(picture).iter():
        if line in element.get("class", "").split():
            return [
                -1 if text.text == "-" else int(text.text or "") for text in element
            ]
    raise AssertionError(f"the picture has no line {line}")


def token_kinds(row: Sequence[Sequence[Span]], num_tokens: int) -> list[str]:
    """Name the kind of every token, from the samples of a row."""
    spans = [span for sample in row for span in sample]
    kinds = []
    for span in spans:
        if isinstance(span, TextSpan):
            kinds += ["text"] * len(span.token_ids)
        else:
            counts = reference.tokens_per_frame(span.grid, astuple(span.schedule))
            for slow, count in zip(span.schedule.is_slow, counts, strict=True):
                kinds += ["slow" if slow else "fast"] * count
    return kinds + ["padding"] * (num_tokens - len(kinds))


def lay_out(
    row: Sequence[Sequence[Span]], padding: int, *, plain: bool = False
) -> TokenLayout:
    """Lay a row out; ``plain`` gives every token a rank of its own."""
    return build_layout(
        row,
        video_token_id=fst.VIDEO_TOKEN_ID,
        attention="causal" if plain else "frame_causal",
        length=sum(map(count_tokens, row)) + padding,
    )


def strip_tokens(picture: str) -> dict[int, int]:
    """Tell which token each cell of the strip of keys stands for."""
    (strip,) = boxes(picture, "keys")
    return {left: token for token, (_, left, *_) in enumerate(strip)}


def painted(picture: str) -> dict[tuple[int, int], list[str]]:
    """List what is painted on every (query, key); cells of no token are left out."""
    token = strip_tokens(picture)
    (pairs,) = boxes(picture, "pairs")
    seen: dict[tuple[int, int], list[str]] = {}
    for kind, left, top, right, bottom in pairs:
        for row in range(top, bottom):
            for column in range(left, right):
                seen.setdefault((token[row], token[column]), []).append(kind)
    return seen


@given(fst.unordered_rows())
def test_render_mask__round_trip(row: fst.Row) -> None:
    ranks, segments = row
    picture = render_mask(frame_causal_mask(ranks, segments), len(ranks))
    marks = {"#": True, ".": False}
    read = [[marks[mark] for mark in line] for line in picture.split("\n")]
    assert read == reference.visible_pairs(ranks.tolist(), segments.tolist())


@given(fst.video_spans(max_side=6))
def test_schedule_svg__one_window_per_token(clip: VideoSpan) -> None:
    frames = boxes(schedule_svg(clip.grid, clip.schedule), "frame")
    assert [len(windows) for windows in frames] == reference.tokens_per_frame(
        clip.grid, astuple(clip.schedule)
    )


@given(fst.plain_schedules(), fst.grids())
def test_schedule_svg__tiles(schedule: FrameSchedule, grid: Grid) -> None:
    frames = boxes(schedule_svg(grid, schedule), "frame")
    for stride, windows in zip(schedule.strides, frames, strict=True):
        drawn = [
            [
                (row, column)
                for row in range(top, bottom)
                for column in range(left, right)
            ]
            for _, left, top, right, bottom in windows
        ]
        frame = reference.plain_frame(0, stride)
        assert drawn == reference.window_cells(grid, frame)


@given(fst.packed_samples(), st.integers(0, 7))
def test_layout_svg__one_cell_per_token(row: list[list[Span]], padding: int) -> None:
    layout = lay_out(row, padding)
    (cells,) = boxes(layout_svg(layout), "tokens")
    assert [cell[0] for cell in cells] == token_kinds(row, len(layout.input_ids))
    edges = [(left, right) for _, left, _, right, _ in cells]
    assert all(before[1] <= after[0] for before, after in pairwise(edges))


@given(fst.packed_samples(), st.integers(0, 7))
def test_layout_svg__numbers(row: list[list[Span]], padding: int) -> None:
    layout = lay_out(row, padding)
    picture = layout_svg(layout)
    ranks, segments = layout.causal_ranks.tolist(), layout.segment_ids.tolist()
    assert numbers(picture, "segment") == segments
    assert numbers(picture, "frame") == layout.frame_ids.tolist()
    assert numbers(picture, "rank") == ranks
    for start, stop, seen in zip(
        numbers(picture, "start"),
        numbers(picture, "stop"),
        reference.visible_pairs(ranks, segments),
        strict=True,
    ):
        assert seen == [start <= key < stop for key in range(len(ranks))]


@given(fst.packed_samples(), st.integers(0, 7), st.booleans())
def test_mask_svg__round_trip(row: list[list[Span]], padding: int, plain: bool) -> None:
    layout = lay_out(row, padding, plain=plain)
    seen = painted(mask_svg(layout))
    kinds = token_kinds(row, len(layout.input_ids))
    assert {pair: found[0] for pair, found in seen.items()} == {
        (query, key): kinds[key]
        for query, keys in enumerate(
            reference.visible_pairs(
                layout.causal_ranks.tolist(), layout.segment_ids.tolist()
            )
        )
        for key, visible in enumerate(keys)
        if visible
    }


@given(fst.packed_samples(), st.integers(0, 7), st.booleans())
def test_mask_svg__disjoint(row: list[list[Span]], padding: int, plain: bool) -> None:
    seen = painted(mask_svg(lay_out(row, padding, plain=plain)))
    assert all(len(kinds) == 1 for kinds in seen.values())


@given(fst.packed_samples(), st.integers(0, 7))
def test_mask_svg__one_cell_per_token(row: list[list[Span]], padding: int) -> None:
    layout = lay_out(row, padding)
    picture = mask_svg(layout)
    kinds = token_kinds(row, len(layout.input_ids))
    (keys,), (queries,) = boxes(picture, "keys"), boxes(picture, "queries")
    assert [key[0] for key in keys] == kinds
    assert [query[0] for query in queries] == kinds
    assert [key[1] for key in keys] == [query[2] for query in queries]


def test_pictures_are_documents_of_their_own() -> None:
    layout = lay_out([[TextSpan(token_ids=(1, 2))], [TextSpan(token_ids=(3,))]], 1)
    schedule = schedule_from_strides([1, 2])
    for picture in (
        mask_svg(layout),
        layout_svg(layout),
        schedule_svg((2, 2), schedule),
    ):
        root = ElementTree.fromstring(picture)
        names = [child.tag.partition("}")[2] for child in root]
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert names[:3] == ["title", "desc", "style"]
        assert all(child.text for child in root[:3])
        assert "url(" not in picture and "href" not in picture
        assert picture.isascii()


def test_render_mask_is_square() -> None:
    picture = render_mask(frame_causal_mask(torch.tensor([0, 1, 1])), 3)
    assert picture == "#..\n###\n###"


def test_a_schedule_tells_what_each_frame_is_and_keeps() -> None:
    picture = schedule_svg((2, 2), schedule_from_strides([1, 2, 2]))
    elements = list(ElementTree.fromstring(picture).iter())
    caption = "3 frames, 6 tokens, 12 before pooling"
    words = [element.text for element in elements if element.tag.endswith("}text")]
    assert words == [caption, "4", "slow", "1", "fast", "1", "fast"]
    frames = [element.get("class") for element in elements if element.get("transform")]
    assert frames == ["cells frame slow", "cells frame fast", "cells frame fast"]


def test_segments_are_set_apart() -> None:
    samples = [[TextSpan(token_ids=(1, 2))], [TextSpan(token_ids=(3,))]]
    layout = lay_out(samples, 2)
    for picture, group in ((layout_svg(layout), "tokens"), (mask_svg(layout), "keys")):
        (cells,) = boxes(picture, group)
        assert [left for _, left, *_ in cells] == [0, 1, 3, 5, 6]
