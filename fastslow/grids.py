"""Token-grid arithmetic: from raw frames to the windows of a pooled frame."""

from typing import Any, Literal

from fastslow._shapes import check_word, has_entries, whole_grid, whole_number
from fastslow._typing import Grid

Edge = Literal["ceil", "floor", "error"]
"""Cells that fill no whole window are kept, dropped or refused."""

Mode = Literal["average", "max", "area", "bilinear"]
"""How the cells of a window become one token."""


def temporal_patches(num_video_frames: int, *, temporal_patch_size: int = 2) -> int:
    """Count the frames that a vision tower makes of a clip's raw frames.

    Qwen2-VL merges ``temporal_patch_size`` raw frames into one and repeats the last
    raw frame when they do not divide evenly.

    Args:
        num_video_frames: Raw frames, at least 1.
        temporal_patch_size: Raw frames in one temporal patch, at least 1.

    Returns:
        ``ceil(num_video_frames / temporal_patch_size)``.

    Raises:
        ValueError: If an argument is no whole number from 1 on.

    Laws:
        ceil: the smallest count whose patches hold every raw frame: ``(n - 1) * size <
            frames <= n * size``

    Example:
        >>> temporal_patches(16), temporal_patches(7)
        (8, 4)
    """
    num_video_frames = whole_number("num_video_frames", num_video_frames)
    temporal_patch_size = whole_number("temporal_patch_size", temporal_patch_size)
    if num_video_frames < 1 or temporal_patch_size < 1:
        raise ValueError(
            f"num_video_frames is {num_video_frames} and temporal_patch_size is "
            f"{temporal_patch_size}; both must be at least 1"
        )
    return -(-num_video_frames // temporal_patch_size)


def merged_grid(patch_grid: Grid, *, merge_size: int = 2) -> Grid:
    """Give the token grid that remains after patches are merged in squares.

    Args:
        patch_grid: Height and width of a frame in patches.
        merge_size: Patches along each side of a merged token, at least 1.

    Returns:
        Height and width in merged tokens.

    Raises:
        ValueError: If there are not two sides that are whole, positive multiples of
            ``merge_size``.

    Laws:
        exact: every merged token holds merge_size ** 2 patches and none is left: ``h *
            w * merge_size ** 2 == H * W``

    Example:
        >>> merged_grid((32, 46))
        (16, 23)
    """
    height, width = whole_grid(patch_grid, "patch_grid")
    merge_size = whole_number("merge_size", merge_size)
    if min(height, width, merge_size) < 1 or height % merge_size or width % merge_size:
        raise ValueError(
            f"patch_grid is {patch_grid}; both sides must be positive multiples of "
            f"merge_size {merge_size}"
        )
    return height // merge_size, width // merge_size


def merged_stride(patch_stride: int, *, merge_size: int = 2) -> int:
    """Turn a pooling stride in vision patches into one in merged tokens.

    Recipes count strides in patches, as LLaVA-NeXT does; Qwen2-VL pools a grid whose
    tokens already hold ``merge_size`` patches a side.

    Args:
        patch_stride: Stride in patches, a positive multiple of ``merge_size``.
        merge_size: Patches along each side of a merged token, at least 1.

    Returns:
        The stride in merged tokens.

    Raises:
        ValueError: If ``patch_stride`` is not a whole, positive multiple of
            ``merge_size``.

    Laws:
        exact: the merged stride spans as many patches as the patch stride:
            ``merged_stride(s) * merge_size == s``

    Example:
        >>> merged_stride(4), merged_stride(8)
        (2, 4)
    """
    patch_stride = whole_number("patch_stride", patch_stride)
    merge_size = whole_number("merge_size", merge_size)
    if merge_size < 1 or patch_stride < 1 or patch_stride % merge_size:
        raise ValueError(
            f"patch_stride is {patch_stride}; it must be a positive multiple of "
            f"merge_size {merge_size}"
        )
    return patch_stride // merge_size


def window_bounds(
    side: int,
    *,
    stride: int | None = None,
    count: int | None = None,
    edge: Edge = "ceil",
) -> tuple[tuple[int, int], ...]:
    """Cut one side of a grid into pooling windows.

    With a stride ``s``, window ``i`` begins at ``i s`` and holds ``s`` cells; what
    remains at the far edge is a smaller window (``ceil``), is left out (``floor``), or
    must not be (``error``). With a count ``n``, window ``i`` reaches from
    ``floor(i side / n)`` to ``ceil((i + 1) side / n)``, as adaptive pooling does:
    windows may share a cell, and none is empty.

    Args:
        side: Cells along the side, at least 1.
        stride: Cells of a window, at least 1.
        count: Number of windows, at least 1. Exactly one of stride and count is given.
        edge: What becomes of a remainder: ``ceil``, ``floor`` or ``error``.

    Returns:
        First cell and one past the last cell of each window, in order.

    Raises:
        ValueError: If a number is below 1, not exactly one of stride and count is
            given, nothing is left under ``floor``, or there is a remainder under
            ``error``.

    Laws:
        covers: under ``ceil`` the windows of a stride hold every cell exactly once:
            ``sum(windows, []) == list(range(side))``
        edges_agree: ``floor`` gives the windows of ``ceil`` that are whole, and
            ``error`` either the same as both or a ValueError: ``floor == [w for w in
            ceil if len(w) == stride]``
        counted: windows by count hold every cell, and each is at most one cell longer
            than side / count, rounded up: ``len(w) <= ceil(side / count) + 1``
        divides: where count divides side, they are the windows of stride side / count:
            ``by_count(side, c) == by_stride(side, side / c) if side % c == 0``

    Example:
        >>> window_bounds(13, stride=4)
        ((0, 4), (4, 8), (8, 12), (12, 13))
        >>> window_bounds(13, count=2)
        ((0, 7), (6, 13))
    """
    if (stride is None) == (count is None):
        raise ValueError(
            f"stride is {stride} and count is {count}; exactly one of them is given"
        )
    if min(number for number in (side, stride, count) if number is not None) < 1:
        given = f"stride is {stride}" if count is None else f"count is {count}"
        raise ValueError(f"side is {side} and {given}; both must be at least 1")
    if count is not None:
        return tuple(
            (i * side // count, -(-(i + 1) * side // count)) for i in range(count)
        )
    assert stride is not None
    windows = _num_windows(side, stride, edge)
    return tuple((i * stride, min((i + 1) * stride, side)) for i in range(windows))


def pooled_grid(
    grid: Grid, stride: int | tuple[int, int], *, edge: Edge = "ceil"
) -> Grid:
    """Give the grid that pooling with a stride leaves.

    Args:
        grid: Height and width in tokens, both at least 1.
        stride: Side of the square pooling window, in tokens, at least 1; or its height
            and width.
        edge: What becomes of cells that fill no whole window, see ``window_bounds``.

    Returns:
        ``(ceil(height / stride), ceil(width / stride))``, or the same rounded down
        under ``floor``.

    Raises:
        ValueError: If there are not two sides, one of them or a stride is no whole
            number or below 1, nothing is left under ``floor``, or a side is no multiple
            of its stride under ``error``.

    Laws:
        covers: under ``ceil`` the windows cover the grid and the last one of a side is
            not empty: ``(n - 1) * stride < side <= n * stride``
        counts_windows: the number of windows that ``window_bounds`` cuts each side
            into: ``n == len(window_bounds(side, stride))``
        identity: stride 1 changes nothing: ``pooled_grid(g, 1) == g``
        composes: strides a and b, one after the other, are stride a * b:
            ``pooled_grid(pooled_grid(g, a), b) == pooled_grid(g, a * b)``

    Example:
        >>> pooled_grid((13, 23), 4), pooled_grid((13, 23), 4, edge="floor")
        ((4, 6), (3, 5))
    """
    grid = whole_grid(grid)
    given: Any = stride
    if has_entries(given):
        sides = whole_grid(given, "stride")
    else:
        sides = (whole_number("stride", given),) * 2
    if min(*grid, *sides) < 1:
        raise ValueError(
            f"grid is {grid} and stride is {stride}; all must be at least 1"
        )
    height, width = (_num_windows(n, s, edge) for n, s in zip(grid, sides, strict=True))
    return height, width


def _num_windows(side: int, stride: int, edge: str) -> int:
    """Count the windows of one side; side and stride are at least 1."""
    whole, rest = divmod(side, stride)
    if edge == "ceil":
        return whole + (rest > 0)
    if edge == "floor":
        if not whole:
            raise ValueError(
                f"a side of {side} tokens holds no whole window of stride {stride}; "
                "edge 'ceil' keeps it"
            )
        return whole
    check_word("edge", edge, Edge)
    if rest:
        raise ValueError(
            f"a side of {side} tokens is no multiple of stride {stride}; edge 'ceil' "
            "keeps what remains and 'floor' drops it"
        )
    return whole
