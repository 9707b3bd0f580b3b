"""Schedules, written out frame by frame and window by window."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import product
from math import ceil, floor

from tests.oracles.whole_step.options import Options

Grid = tuple[int, int]
Bounds = tuple[int, int]
"""First cell of a window along one side, and the one after its last."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A pooled frame: what it reads of its clip, and its windows along each side."""

    start: int
    stop: int
    rows: list[Bounds]
    columns: list[Bounds]
    is_slow: bool
    keep: tuple[bool, ...] | None = None

    @property
    def windows(self) -> list[tuple[Bounds, Bounds]]:
        return list(product(self.rows, self.columns))

    @property
    def kept(self) -> list[int]:
        """Number the windows that have a token."""
        numbers = range(len(self.windows))
        return [n for n in numbers if self.keep is None or self.keep[n]]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a strategy learns of a clip and of the run."""

    num_frames: int
    grid: Grid
    slow_ratio: float
    slow_stride: int


def schedule(options: Options, num_frames: int, grid: Grid) -> list[Frame]:
    name, arguments = options.strategy
    shape = Shape(
        num_frames=num_frames,
        grid=grid,
        slow_ratio=options.slow_frame_ratio,
        slow_stride=options.mm_spatial_pool_stride // 2,
    )
    return STRATEGIES[name](shape, **arguments)


def by_stride(side: int, stride: int, edge: str = "ceil") -> list[Bounds]:
    bounds = [(at, min(at + stride, side)) for at in range(0, side, stride)]
    whole = [(at, end) for at, end in bounds if end - at == stride]
    return bounds if edge == "ceil" else whole


def by_count(side: int, count: int) -> list[Bounds]:
    return [
        (floor(Fraction(n * side, count)), ceil(Fraction((n + 1) * side, count)))
        for n in range(count)
    ]


def round_half_up(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))


def spread(count: int, wanted: int) -> list[int]:
    """Choose so many of some numbers, evenly, the first and the last among them."""
    if wanted == 1:
        return [0]
    steps = (Fraction(n * (count - 1), wanted - 1) for n in range(wanted))
    return [round_half_up(step) for step in steps]


def slow_frames(num_frames: int, strategy: str, ratio: Fraction) -> list[bool]:
    times, count = range(num_frames), ceil(num_frames * ratio)
    if strategy == "interleave":
        return [ceil((t + 1) * ratio) > ceil(t * ratio) for t in times]
    if strategy == "first_slow":
        return [t < count for t in times]
    if strategy == "last_slow":
        return [t >= num_frames - count for t in times]
    chosen = spread(num_frames, round_half_up(num_frames * ratio))
    return [t in chosen for t in times]


def squares(
    grid: Grid, strides: Iterable[int], is_slow: Sequence[bool], edge: str = "ceil"
) -> list[Frame]:
    return [
        Frame(
            start=time,
            stop=time + 1,
            rows=by_stride(grid[0], stride, edge),
            columns=by_stride(grid[1], stride, edge),
            is_slow=is_slow[time],
        )
        for time, stride in enumerate(strides)
    ]


def build_schedule(
    shape: Shape, *, strategy: str = "interleave", slow_stride: int | None = None
) -> list[Frame]:
    ratio = Fraction(str(shape.slow_ratio))
    is_slow = slow_frames(shape.num_frames, strategy, ratio)
    return two_level_schedule(shape, is_slow=is_slow, slow_stride=slow_stride)


def two_level_schedule(
    shape: Shape, *, is_slow: Sequence[bool], slow_stride: int | None = None
) -> list[Frame]:
    slow, fast = slow_stride or shape.slow_stride, 2 * shape.slow_stride
    return squares(shape.grid, [slow if each else fast for each in is_slow], is_slow)


def schedule_from_strides(
    shape: Shape, *, strides: Sequence[int], edge: str = "ceil"
) -> list[Frame]:
    is_slow = [stride == min(strides) for stride in strides]
    return squares(shape.grid, strides, is_slow, edge)


def repeat_strides(
    shape: Shape, *, pattern: Sequence[int], phase: int = 0
) -> list[Frame]:
    times = range(shape.num_frames)
    strides = [pattern[(time - phase) % len(pattern)] for time in times]
    return squares(shape.grid, strides, [s == min(pattern) for s in strides])


def kernel_schedule(
    shape: Shape,
    *,
    kernel: tuple[int, int, int],
    is_slow: bool = False,
    edge: str = "ceil",
) -> list[Frame]:
    rows, columns = (
        by_stride(side, stride, edge)
        for side, stride in zip(shape.grid, kernel[1:], strict=True)
    )
    return [
        Frame(start=start, stop=stop, rows=rows, columns=columns, is_slow=is_slow)
        for start, stop in by_stride(shape.num_frames, kernel[0], edge)
    ]


def schedule_from_grids(shape: Shape, *, grids: Sequence[Grid]) -> list[Frame]:
    most = max(height * width for height, width in grids)
    return [
        Frame(
            start=time,
            stop=time + 1,
            rows=by_count(shape.grid[0], height),
            columns=by_count(shape.grid[1], width),
            is_slow=height * width == most,
        )
        for time, (height, width) in enumerate(grids)
    ]


def schedule_for_budget(
    shape: Shape, *, budget: int, strategy: str = "interleave"
) -> list[Frame]:
    """Try all; most tokens go first, then the finer fast frames, then more slow."""
    strides, whole = (1, 2, 4, 8), shape.num_frames
    tokens = {s: ceil(shape.grid[0] / s) * ceil(shape.grid[1] / s) for s in strides}
    fitting = []
    for fast, slow, count in product(strides, strides, range(whole + 1)):
        total = count * tokens[slow] + (whole - count) * tokens[fast]
        if slow <= fast and total <= budget:
            fitting.append((total, -fast, count, -slow))
    _, fast, count, slow = max(fitting)
    is_slow = slow_frames(whole, strategy, Fraction(count, whole))
    return squares(shape.grid, [-slow if s else -fast for s in is_slow], is_slow)


def every_other_frame(shape: Shape) -> list[Frame]:
    strides = [shape.slow_stride] * shape.num_frames
    return squares(shape.grid, strides, [True] * shape.num_frames)[::2]


def two_streams(shape: Shape, *, order: str) -> list[Frame]:
    strides = [2 * shape.slow_stride] * shape.num_frames
    fast = squares(shape.grid, strides, [False] * shape.num_frames)
    frames = every_other_frame(shape) + fast
    return frames if order == "stream" else sorted(frames, key=lambda f: f.stop)


def two_of_three_tokens(shape: Shape) -> list[Frame]:
    frames = []
    for time, frame in enumerate(build_schedule(shape)):
        count = len(frame.windows)
        keep = tuple((n + time) % 3 != 1 or count == 1 for n in range(count))
        frames.append(replace(frame, keep=keep))
    return frames


def grids_in_turn(shape: Shape) -> list[Frame]:
    height, width = shape.grid
    grids = [(min(2, height), min(3, width)), (1, min(2, width))] * shape.num_frames
    return schedule_from_grids(shape, grids=grids[: shape.num_frames])


STRATEGIES: Mapping[str, Callable[..., list[Frame]]] = {
    **{
        rule: partial(build_schedule, strategy=rule)
        for rule in ("interleave", "first_slow", "last_slow", "uniform")
    },
    **{
        build.__name__: build
        for build in (
            build_schedule,
            two_level_schedule,
            schedule_from_strides,
            repeat_strides,
            kernel_schedule,
            schedule_from_grids,
            schedule_for_budget,
            every_other_frame,
            two_streams,
            two_of_three_tokens,
            grids_in_turn,
        )
    },
}
"""By name; the last four are no functions of the library but are made of its own."""
