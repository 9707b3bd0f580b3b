"""Laws of ``fastslow.attention``."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastslow import interval_attention
from fastslow.masks import KeptKeys, KeyIntervals
from fastslow.testing import reference
from fastslow.testing import strategies as fst

Inputs = tuple[Tensor, Tensor, Tensor]


def bounds(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def key_intervals(
    start: list[int],
    stop: list[int],
    kept: tuple[list[int], list[bool]] | None = None,
) -> KeyIntervals:
    return KeyIntervals(
        start=bounds(start),
        stop=bounds(stop),
        kept=kept and KeptKeys(start=bounds(kept[0]), is_kept=torch.tensor(kept[1])),
    )


def visible(intervals: KeyIntervals) -> Tensor:
    """Write out who reads whom, pair by pair."""
    start, stop = intervals.start.tolist(), intervals.stop.tolist()
    tokens = range(len(start))
    first, kept = start, [False for _ in tokens]
    if intervals.kept is not None:
        first, kept = intervals.kept.start.tolist(), intervals.kept.is_kept.tolist()
    pairs = [
        [
            start[q] <= k < stop[q] or (kept[k] and first[q] <= k < start[q])
            for k in tokens
        ]
        for q in tokens
    ]
    return torch.tensor(pairs)


def anywhere(tokens: list[tuple[int, int, int, bool]], keeps: bool) -> KeyIntervals:
    """Let each query read a run of keys anywhere, and kept keys so far before it."""
    last = len(tokens)
    start = [min(first, last) for first, _, _, _ in tokens]
    widths = [width for _, width, _, _ in tokens]
    stop = [min(s + width, last) for s, width in zip(start, widths, strict=True)]
    if not keeps:
        return key_intervals(start, stop)
    kept_start = [
        max(s - reach, 0) for s, (_, _, reach, _) in zip(start, tokens, strict=True)
    ]
    return key_intervals(start, stop, (kept_start, [kept for *_, kept in tokens]))


def windowed(row: fst.Row, window: int, kept: list[bool]) -> KeyIntervals:
    """Let each query read the last ranks of its segment, and kept keys before them."""
    ranks, segments = row[0].tolist(), row[1].tolist()
    start, stop, kept_start = [], [], []
    for q, sees in enumerate(reference.visible_pairs(ranks, segments)):
        keys = [k for k, sees_it in enumerate(sees) if sees_it]
        near = [k for k in keys if ranks[k] > ranks[q] - window]
        kept_start.append(keys[0] if keys else 0)
        start.append(near[0] if near else 0)
        stop.append(near[-1] + 1 if near else 0)
    return key_intervals(start, stop, (kept_start, (kept * len(ranks))[: len(ranks)]))


any_intervals = st.one_of(
    st.builds(
        anywhere,
        st.lists(
            st.tuples(
                st.integers(0, 12), st.integers(0, 8), st.integers(0, 8), st.booleans()
            ),
            min_size=1,
            max_size=16,
        ),
        st.booleans(),
    ),
    st.builds(
        windowed,
        fst.ranked_rows(),
        st.integers(1, 9),
        st.lists(st.booleans(), min_size=1, max_size=12),
    ),
)
"""Any intervals, with kept keys or without, and those of windows over packed rows."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    intervals: KeyIntervals
    seed: int = 0
    key_heads: int = 1
    groups: int = 1
    value_dim: int = 3
    tile: int = 3
    scale: float | None = None

    def values(self, number: int, heads: int, dim: int) -> Tensor:
        shape = (2, heads, len(self.intervals.start), dim)
        seed = self.seed + number
        return fst.random_values(shape, seed=seed, dtype=torch.float64)

    @property
    def inputs(self) -> Inputs:
        return (
            self.values(0, self.key_heads * self.groups, 3),
            self.values(1, self.key_heads, 3),
            self.values(2, self.key_heads, self.value_dim),
        )

    @property
    def weights(self) -> Tensor:
        return self.values(3, self.key_heads * self.groups, self.value_dim)

    def ours(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return interval_attention(
            query, key, value, self.intervals, scale=self.scale, tile=self.tile
        )

    def dense(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend under the dense mask; a query without keys gives zero."""
        mask = visible(self.intervals)
        nothing = ~mask.any(1, keepdim=True)
        output = F.scaled_dot_product_attention(
            query,
            key.repeat_interleave(self.groups, 1),
            value.repeat_interleave(self.groups, 1),
            attn_mask=mask | nothing,
            scale=self.scale,
        )
        return output.masked_fill(nothing, 0)


problems = st.builds(
    Problem,
    intervals=any_intervals,
    seed=fst.seeds(),
    key_heads=st.integers(1, 2),
    groups=st.integers(1, 3),
    value_dim=st.integers(2, 3),
    tile=st.integers(1, 9),
    scale=st.none() | st.floats(0.1, 2),
)

WINDOW_WITH_KEPT = Problem(
    intervals=key_intervals(
        start=[0, 0, 1, 2, 3, 6, 6, 0],
        stop=[1, 2, 3, 4, 5, 7, 7, 0],
        kept=(
            [0, 0, 0, 0, 0, 5, 5, 0],
            [True, False, True, False, False, True, False, True],
        ),
    ),
    groups=2,
    tile=2,
)
KEPT_ALONE = Problem(
    intervals=key_intervals([2, 2, 2], [2, 2, 2], ([0, 1, 2], [True, True, False]))
)
PADDING_ALONE = Problem(intervals=key_intervals([0, 3, 4, 4], [0, 3, 4, 4]))
ONE_FRAME = Problem(intervals=key_intervals([0] * 4, [4] * 4), tile=2)
ONE_FRAME_AND_PADDING = Problem(
    intervals=key_intervals([0, 1, 0, 0], [3, 1, 3, 0]), tile=4
)


def gradients(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    inputs: Inputs,
    weights: Tensor,
) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves), leaves, weights)


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


@given(problems)
@example(WINDOW_WITH_KEPT)
@example(KEPT_ALONE)
@example(ONE_FRAME)
@example(ONE_FRAME_AND_PADDING)
def test_interval_attention__matches_sdpa(problem: Problem) -> None:
    inputs = problem.inputs
    assert_close(problem.ours(*inputs), problem.dense(*inputs))


@given(problems)
@example(WINDOW_WITH_KEPT)
@example(KEPT_ALONE)
@example(ONE_FRAME)
@example(ONE_FRAME_AND_PADDING)
def test_interval_attention__gradients_match(problem: Problem) -> None:
    inputs, weights = problem.inputs, problem.weights
    ours = gradients(problem.ours, inputs, weights)
    assert_close(ours, gradients(problem.dense, inputs, weights))


@given(problems)
@example(WINDOW_WITH_KEPT)
@example(PADDING_ALONE)
@example(ONE_FRAME_AND_PADDING)
def test_interval_attention__reads_nothing(problem: Problem) -> None:
    inputs, weights = problem.inputs, problem.weights
    mask = visible(problem.intervals)
    nothing, unread = ~mask.any(1), ~mask.any(0)
    assert (problem.ours(*inputs)[:, :, nothing] == 0).all()
    wild = weights.masked_fill(nothing[:, None], torch.nan)
    ours = gradients(problem.ours, inputs, wild)
    assert (ours[0][:, :, nothing] == 0).all()
    assert all((grad[:, :, unread] == 0).all() for grad in ours[1:])
    assert_close(ours, gradients(problem.ours, inputs, weights))


@given(problems, st.data())
@example(WINDOW_WITH_KEPT, None)
@example(KEPT_ALONE, None)
def test_interval_attention__support(
    problem: Problem, data: st.DataObject | None
) -> None:
    query, key, value = problem.inputs
    mask = visible(problem.intervals)
    tokens = len(mask)
    each = torch.eye(tokens, dtype=torch.float64).expand(*key.shape[:3], tokens)
    shares = problem.ours(query, key, each)
    assert torch.equal(shares > 0, mask.expand_as(shares))

    chosen = 0 if data is None else data.draw(st.integers(0, tokens - 1))
    other = key.clone()
    other[:, :, chosen] += 1
    before, after = problem.ours(query, key, value), problem.ours(query, other, value)
    changed = (before != after).any(3).any(1).any(0)
    assert torch.equal(changed, mask[:, chosen] & (mask.sum(1) > 1))


@given(problems, st.integers(1, 40))
@example(WINDOW_WITH_KEPT, 8)
@example(WINDOW_WITH_KEPT, 2**40)
def test_interval_attention__tile_free(problem: Problem, tile: int) -> None:
    other = Problem(**{**vars(problem), "tile": tile})
    inputs, weights = problem.inputs, problem.weights
    assert_close(problem.ours(*inputs), other.ours(*inputs))
    assert_close(
        gradients(problem.ours, inputs, weights),
        gradients(other.ours, inputs, weights),
    )


@given(problems)
@example(WINDOW_WITH_KEPT)
def test_interval_attention__heads_grouped(problem: Problem) -> None:
    def repeated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads = [x.repeat_interleave(problem.groups, 1) for x in (key, value)]
        return problem.ours(query, *heads)

    inputs, weights = problem.inputs, problem.weights
    assert_close(problem.ours(*inputs), repeated(*inputs))
    assert_close(
        gradients(problem.ours, inputs, weights), gradients(repeated, inputs, weights)
    )


@pytest.mark.parametrize("problem", [WINDOW_WITH_KEPT, KEPT_ALONE, ONE_FRAME])
def test_gradients_are_those_of_finite_differences(problem: Problem) -> None:
    leaves = [x.requires_grad_() for x in problem.inputs]
    assert torch.autograd.gradcheck(problem.ours, leaves)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)]
)
def test_narrow_types_keep_their_type_and_their_accuracy(
    dtype: torch.dtype, tolerance: float
) -> None:
    problem = WINDOW_WITH_KEPT
    inputs, weights = problem.inputs, problem.weights
    query, key, value = (x.to(dtype) for x in inputs)
    wide = (query.double(), key.double(), value.double())
    output = problem.ours(query, key, value)
    ours = gradients(problem.ours, (query, key, value), weights.to(dtype))
    assert output.dtype == dtype
    assert {grad.dtype for grad in ours} == {dtype}
    expected = gradients(problem.dense, wide, weights.to(dtype).double())
    for actual, wanted in zip(
        (output, *ours), (problem.dense(*wide), *expected), strict=True
    ):
        torch.testing.assert_close(
            actual.double(), wanted, rtol=tolerance, atol=tolerance
        )


def test_gradients_of_narrow_types_add_up_in_float32() -> None:
    problem = Problem(intervals=key_intervals([0] * 512, [1] * 512), tile=1)
    inputs = tuple(x.bfloat16() for x in problem.inputs)
    *_, value = gradients(problem.ours, inputs, torch.ones_like(inputs[0]))
    assert (value[:, :, 0] == 512).all()
    assert (value[:, :, 1:] == 0).all()


def test_gradients_under_autocast_are_taken_in_float32() -> None:
    problem = Problem(intervals=key_intervals([0, 0, 0], [2, 2, 3]))
    inputs = [x.float().requires_grad_() for x in problem.inputs]
    output = problem.ours(*inputs)
    wanted = torch.autograd.grad(output.sum(), inputs, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grads = torch.autograd.grad(output.sum(), inputs)
    for grad, want in zip(grads, wanted, strict=True):
        assert torch.equal(grad, want)


def test_inputs_may_be_views() -> None:
    problem = WINDOW_WITH_KEPT
    query, key, value = problem.inputs
    strided = (
        query.transpose(1, 2).contiguous().transpose(1, 2),
        key.transpose(2, 3).contiguous().transpose(2, 3),
        value[:1, :, :1].expand_as(value),
    )
    assert not any(x.is_contiguous() for x in strided)
    assert_close(problem.ours(*strided), problem.dense(*strided))
    assert_close(
        gradients(problem.ours, strided, problem.weights),
        gradients(problem.dense, strided, problem.weights),
    )


def test_a_row_may_be_empty() -> None:
    problem = Problem(intervals=key_intervals([], []))
    assert problem.ours(*problem.inputs).shape == (2, 1, 0, 3)


class Made(TorchDispatchMode):
    """Notes what is called, and the type and size of everything that comes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.results: list[tuple[torch.dtype, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append(str(func))
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, Tensor):
                self.results.append((made.dtype, made.numel()))
        return result

    def largest_mask(self) -> int:
        return max(size for dtype, size in self.results if dtype == torch.bool)


def packed_frames(tokens: int, *, frame: int, documents: int) -> KeyIntervals:
    """Pack documents of equal frames, each seeing 2 frames and 16 kept tokens."""
    size = tokens // documents
    token = torch.arange(tokens)
    first = token // size * size
    end = (token - first) // frame * frame + first + frame
    return KeyIntervals(
        start=(end - 2 * frame).maximum(first).int(),
        stop=end.int(),
        kept=KeptKeys(start=first.int(), is_kept=token - first < 16),
    )


def test_memory_is_linear() -> None:
    tokens, heads, dim, tile = 4096, 4, 16, 128
    intervals = packed_frames(tokens, frame=64, documents=8)
    query, key, value = (
        fst.random_values((1, h, tokens, dim), seed=h).requires_grad_()
        for h in (heads, 2, 2)
    )
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with Made() as made, torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        output = interval_attention(query, key, value, intervals, tile=tile)
        output.backward(torch.ones_like(output))
    assert len(saved) == 4
    assert max(saved) <= query.numel()
    assert any("scaled_dot_product" in name for name in made.calls)
    largest = max(size for _, size in made.results)
    assert largest <= query.numel()
    assert largest < tokens * tokens / 50


def test_tiles_of_padding_cost_nothing() -> None:
    intervals = key_intervals([0] * 8 + [0] * 56, [8] * 8 + [0] * 56)
    problem = Problem(intervals=intervals, tile=8)
    with Made() as made:
        problem.ours(*problem.inputs)
    assert sum("scaled_dot_product" in name for name in made.calls) == 1


def test_a_tile_that_reads_all_its_keys_has_no_mask() -> None:
    tokens = 64
    intervals = key_intervals([0] * tokens, [tokens] * tokens)
    problem = Problem(intervals=intervals, tile=8)
    with Made() as made:
        problem.ours(*problem.inputs)
    assert made.largest_mask() <= tokens


def test_padding_widens_no_tile() -> None:
    firsts = [q // 8 * 8 for q in range(64)]
    start = [0 if q % 2 else first for q, first in enumerate(firsts)]
    stop = [0 if q % 2 else first + 8 for q, first in enumerate(firsts)]
    problem = Problem(intervals=key_intervals(start, stop), tile=8)
    with Made() as made:
        problem.ours(*problem.inputs)
    assert made.largest_mask() <= 8 * 8


def test_intervals_describe_the_same_row() -> None:
    problem = ONE_FRAME
    with pytest.raises(ValueError) as error:
        interval_attention(*problem.inputs, key_intervals([0] * 5, [1] * 5))
    assert str(error.value) == (
        "intervals has 5 tokens but query has 4; both describe the same row"
    )


def test_key_heads_divide_the_heads() -> None:
    query, key = torch.zeros(1, 3, 4, 2), torch.zeros(1, 2, 4, 2)
    with pytest.raises(ValueError) as error:
        interval_attention(query, key, key, ONE_FRAME.intervals)
    assert str(error.value) == (
        "query has 3 heads but key has 2; the first must be a multiple of the second"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ((1, 1, 9, 2), (1, 1, 9, 2)),
        ((1, 1, 3, 2), (1, 1, 3, 2)),
        ((2, 1, 4, 2), (2, 1, 4, 2)),
        ((1, 1, 4, 2), (1, 1, 5, 2)),
        ((1, 1, 4, 2), (1, 2, 4, 2)),
    ],
)
def test_query_key_and_value_are_of_the_same_rows(
    key: tuple[int, ...], value: tuple[int, ...]
) -> None:
    query = (1, 2, 4, 2)
    shapes = [shape[:3] for shape in (query, key, value)]
    with pytest.raises(ValueError) as error:
        inspect.unwrap(interval_attention)(
            *map(torch.zeros, (query, key, value)), ONE_FRAME.intervals
        )
    assert str(error.value) == (
        f"query, key and value have {shapes} batches, heads and tokens; batches and "
        "tokens must agree, and key and value have as many heads"
    )


@pytest.mark.parametrize("heads", [0, 2])
def test_there_is_a_key_head(heads: int) -> None:
    query, key = torch.zeros(1, heads, 4, 2), torch.zeros(1, 0, 4, 2)
    with pytest.raises(ValueError) as error:
        interval_attention(query, key, key, ONE_FRAME.intervals)
    assert str(error.value) == (
        f"query has {heads} heads but key has 0; the first must be a multiple of the "
        "second"
    )


@pytest.mark.parametrize(("dim", "key_dim"), [(0, 0), (2, 3)])
def test_query_and_key_have_the_same_channels(dim: int, key_dim: int) -> None:
    query, key = torch.zeros(1, 2, 4, dim), torch.zeros(1, 2, 4, key_dim)
    with pytest.raises(ValueError) as error:
        inspect.unwrap(interval_attention)(query, key, key, ONE_FRAME.intervals)
    assert str(error.value) == (
        f"query has {dim} channels but key has {key_dim}; both must have as many, at "
        "least 1"
    )


@pytest.mark.parametrize("tile", [0, -128])
def test_a_tile_holds_a_query(tile: int) -> None:
    with pytest.raises(ValueError) as error:
        inspect.unwrap(interval_attention)(
            *ONE_FRAME.inputs, ONE_FRAME.intervals, tile=tile
        )
    assert str(error.value) == f"tile is {tile}; it must be at least 1"
