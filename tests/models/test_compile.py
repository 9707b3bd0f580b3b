"""The tensor path compiles in one piece, and for rows of any length.

Run without the jaxtyping hook: ``nox -s compile``.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

from fastslow import (
    KeyIntervals,
    Ragged,
    TextSpan,
    VideoSpan,
    build_layout,
    dense_mask,
    interval_block_mask,
    interval_mask,
    labelled_cross_entropy,
    next_frame_loss,
    plan_labels,
    plan_pooling,
    pool_tokens,
    repeat_strides,
    schedule_from_strides,
    select_frames,
    visible_intervals,
)
from fastslow.grids import Mode
from fastslow.losses import Distance, _changes, _compiled, _gradient, _weighted_sum
from fastslow.testing import strategies as fst
from tests.plan_tensors import with_tensors

pytestmark = [
    pytest.mark.skipif(
        hasattr(pool_tokens, "__wrapped__"),
        reason="functions under the jaxtyping hook do not compile: nox -s compile",
    ),
    # torch's compiler calls what torch itself deprecates.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="inductor needs a C++ compiler"
)
BACKENDS = ["aot_eager", pytest.param("inductor", marks=needs_compiler)]

CLIPS = [
    [((5, 3), schedule_from_strides([2, 1, 4]))],
    [((4, 4), repeat_strides(2, (1, 3))), ((2, 7), repeat_strides(1, (2,)))],
    [((3, 3), select_frames(repeat_strides(2, (2,)), [1, 1]))],
]
"""Clips of different sizes: the second turns axes dynamic, the third uses that."""

PLANS = [plan_pooling(clips) for clips in CLIPS]


Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


@pytest.fixture(params=BACKENDS)
def compiled(request: pytest.FixtureRequest) -> Iterator[Compile]:
    torch.compiler.reset()
    yield lambda function: torch.compile(
        function, fullgraph=True, backend=request.param
    )
    torch.compiler.reset()


def values(*shape: int, seed: int) -> Tensor:
    return fst.random_values(shape, seed=seed, dtype=torch.float64)


def assert_all_near(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for found, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["average", "max"])
def test_pool_tokens(compiled: Compile, mode: Mode) -> None:
    plans = [plan_pooling(clips, mode=mode) for clips in CLIPS]

    def forward_and_backward(
        pool: Callable[..., Ragged], number: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        plan = plans[number]
        cells = values(len(plan.cell_starts), 4, seed=number).requires_grad_()
        pooled = pool(cells, plan)
        weights = values(*pooled.values.shape, seed=number + 9)
        (gradient,) = torch.autograd.grad(pooled.values, cells, weights)
        return pooled.values, pooled.cu_seqlens, gradient

    fast = compiled(pool_tokens)
    for number in range(len(plans)):
        expected = forward_and_backward(pool_tokens, number)
        assert_all_near(forward_and_backward(fast, number), expected)


@pytest.mark.parametrize(
    ("distance", "reduction"),
    [("cosine", "frame"), ("mse", "token"), ("smooth_l1", "frame")],
)
def test_next_frame_loss(compiled: Compile, distance: str, reduction: str) -> None:
    def forward_and_backward(
        measure: Callable[..., tuple[Tensor, int]], number: int
    ) -> tuple[int, Tensor, Tensor]:
        plan = PLANS[number]
        goal = pool_tokens(values(len(plan.cell_starts), 4, seed=number), plan)
        guess = values(*goal.values.shape, seed=number + 9).requires_grad_()
        total, count = measure(guess, goal, distance=distance, reduction=reduction)
        (gradient,) = torch.autograd.grad(total, guess)
        return count, total, gradient

    fast = compiled(next_frame_loss)
    for number in range(len(PLANS)):
        count, *found = forward_and_backward(fast, number)
        wanted_count, *wanted = forward_and_backward(next_frame_loss, number)
        assert count == wanted_count
        assert_all_near(found, wanted)


def test_labelled_cross_entropy(compiled: Compile) -> None:
    def forward_and_backward(
        measure: Callable[..., tuple[Tensor, int]], number: int
    ) -> tuple[int, Tensor, Tensor]:
        text = TextSpan(token_ids=(1, 2, 3) * (number + 1), trained=True)
        labels = plan_labels(build_layout([[text]] * 2, video_token_id=9))
        tokens = 6 * (number + 1)
        hidden = values(tokens, 4, seed=number).requires_grad_()
        total, count = measure(hidden, values(10, 4, seed=7), labels)
        (gradient,) = torch.autograd.grad(total, hidden)
        return count, total, gradient

    fast = compiled(labelled_cross_entropy)
    for number in range(4):
        count, *found = forward_and_backward(fast, number)
        wanted_count, *wanted = forward_and_backward(labelled_cross_entropy, number)
        assert count == wanted_count
        assert_all_near(found, wanted)


@needs_compiler
@pytest.mark.parametrize(
    ("distance", "normalize"),
    [("cosine", False), ("mse+cosine", True), ("smooth_l1", False), ("l1", True)],
)
def test_each_pass_of_a_loss_is_one_graph(distance: str, normalize: bool) -> None:
    """On a GPU the loss is what is compiled here, for any number of rows."""
    torch.compiler.reset()
    counters.clear()
    for tokens in (70, 2, 600):
        generator = torch.Generator().manual_seed(tokens)
        drawn = torch.randn(3, tokens, 64, generator=generator)
        guess, goal = drawn[:2].bfloat16().unbind()
        given = guess, goal, drawn[2, :, 0].abs()
        settings, upstream = (distance, normalize), torch.tensor(1 / 3)
        found = _compiled(_weighted_sum, *settings)(*given)
        torch.testing.assert_close(found, _weighted_sum(*given, *settings))
        slopes = _compiled(_gradient, *settings)(*given, upstream)
        torch.testing.assert_close(slopes, _gradient(*given, upstream, *settings))
        assert slopes.dtype == torch.bfloat16
        changes = _compiled(_changes)(guess, goal)
        torch.testing.assert_close(changes, _changes(guess, goal))
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]
    torch.compiler.reset()


def test_settings_of_a_loss_do_not_share_the_limit_of_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.compiler.reset()
    counters.clear()
    compile_eagerly = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    _compiled.cache_clear()
    features, factors = torch.ones(3, 2), torch.ones(3)
    everything = list(product(get_args(Distance), (False, True)))
    assert len(everything) > torch._dynamo.config.recompile_limit
    for settings in everything:
        _compiled(_weighted_sum, *settings)(features, features, factors)
        _compiled(_gradient, *settings)(features, features, factors, factors[0])
    assert counters["stats"]["unique_graphs"] == 2 * len(everything)
    _compiled.cache_clear()
    torch.compiler.reset()


def rows(**window: Any) -> Iterator[KeyIntervals]:
    """Give the visible intervals of rows of several lengths."""
    for frames in (2, 5):
        video = VideoSpan(grid=(3, 3), schedule=schedule_from_strides((1,) * frames))
        sample = [TextSpan(token_ids=(1, 2)), video]
        layout = build_layout([sample] * 2, video_token_id=9, length=24 * frames)
        if window:
            window |= {"frame_ids": layout.frame_ids, "is_kept": layout.frame_ids < 0}
        yield visible_intervals(layout.causal_ranks, layout.segment_ids, **window)


def test_dense_mask(compiled: Compile) -> None:
    def read(visible: KeyIntervals) -> Tensor:
        return dense_mask(interval_mask(visible), len(visible.start))

    fast = compiled(read)
    for visible in rows():
        expected = read(visible)
        assert 0 < expected.sum() < expected.numel()
        assert torch.equal(fast(visible), expected)


def test_interval_block_mask(compiled: Compile) -> None:
    def build(visible: KeyIntervals) -> Any:
        return interval_block_mask(visible, block_size=8)

    fast = compiled(build)
    for visible in (*rows(), *rows(window=1)):
        found, expected = fast(visible), build(visible)
        assert found.seq_lengths == expected.seq_lengths
        assert found.BLOCK_SIZE == expected.BLOCK_SIZE
        for way in ("kv", "q"):
            for name in (f"{way}_num_blocks", f"{way}_indices"):
                for field in (name, f"full_{name}"):
                    assert torch.equal(getattr(found, field), getattr(expected, field))
        tokens = len(visible.start)
        assert torch.equal(
            dense_mask(found.mask_mod, tokens), dense_mask(expected.mask_mod, tokens)
        )


def test_pooling_compiles_in_one_piece_on_a_gpu() -> None:
    """Its kernel is left whole: on fake tensors, which need no GPU."""
    torch.compiler.reset()
    pool = torch.compile(
        lambda *given: pool_tokens(*given).values, fullgraph=True, backend="eager"
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        plan = with_tensors(partial(torch.empty_like, device="cuda"), PLANS[0])
        tokens = torch.empty(len(plan.cell_starts), 3, device="cuda")
        pooled = pool(tokens, plan)
    assert pooled.shape == (len(plan.window_starts), 3)
    assert pooled.is_cuda
