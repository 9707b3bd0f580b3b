"""What ``fastslow.testing`` finds in masks and schedules of others, and in ours."""

import inspect
import itertools
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from fastslow import (
    FrameSchedule,
    build_schedule,
    frame_causal_block_mask,
    frame_causal_mask,
    interval_mask,
    kernel_schedule,
    repeat_strides,
    visible_intervals,
)
from fastslow._typing import MaskMod
from fastslow.testing import check_mask, check_schedule, strategies
from fastslow.testing.checks import masks, schedules

Rule = Callable[[Tensor, Tensor, Tensor], Any]


def causal_or_same_frame(ranks: Tensor, segments: Tensor, frames: Tensor) -> MaskMod:
    """The mask that leaks: each half is harmless, their union is not transitive."""

    def rule(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        same_frame = (frames[q_idx] == frames[kv_idx]) & (frames[q_idx] >= 0)
        same_segment = (segments[q_idx] == segments[kv_idx]) & (segments[q_idx] >= 0)
        return same_segment & ((kv_idx <= q_idx) | same_frame)

    return rule


def right(ranks: Tensor, segments: Tensor) -> Tensor:
    """A correct mask, as a matrix, to be broken in one way or another."""
    together = (segments[:, None] == segments) & (segments >= 0)
    return together & (ranks <= ranks[:, None])


def paired(ranks: Tensor, segments: Tensor, frames: Tensor) -> Tensor:
    """A mask that counts tokens over the whole row, where a segment's own count."""
    index = torch.arange(len(ranks))
    return right(ranks, segments) & (index[:, None] // 2 == index // 2)


def test_masks_of_the_library_pass() -> None:
    check_mask(lambda ranks, segments, frames: frame_causal_mask(ranks, segments))
    check_mask(
        lambda ranks, segments, _: interval_mask(visible_intervals(ranks, segments)),
        rows=strategies.framed_rows(),
    )


def window_of_two(ranks: Tensor, segments: Tensor, frames: Tensor) -> MaskMod:
    return interval_mask(visible_intervals(ranks, segments, frame_ids=frames, window=2))


def test_a_window_obeys_all_laws_but_one() -> None:
    rows = strategies.framed_rows()
    others = [law for law in masks._BREACHES if law != "transitive"]
    check_mask(window_of_two, rows=rows, laws=others)
    with pytest.raises(AssertionError, match="breaks the law transitive: token 2 "):
        check_mask(window_of_two, rows=rows)


def test_the_leak_is_shown_at_its_smallest() -> None:
    with pytest.raises(AssertionError) as caught:
        check_mask(causal_or_same_frame)
    assert str(caught.value) == (
        "the mask breaks the law transitive: token 0 reads 2 and 2 reads 1, but 0 may "
        "not read 1; through two layers it does\n\n"
        "The smallest row that shows it, and its mask, a line for each query, # for "
        "what it reads:\n"
        "  causal_ranks = [0, 1, 0]\n"
        "  segment_ids  = [0, 0, 0]\n"
        "  frame_ids    = [0, 1, 0]\n"
        "  #.#\n"
        "  ##.\n"
        "  ###\n"
    )


@pytest.mark.parametrize(
    ("law", "mask", "words"),
    [
        (
            "reflexive",
            lambda r, s, f: right(r, s) & (r != r[:, None]),
            "token 0 does not read itself",
        ),
        (
            "no_cross_segment",
            lambda r, s, f: (r <= r[:, None]) & (s >= 0) & (s[:, None] >= 0),
            "token 1 of segment 1 reads token 0 of segment 0",
        ),
        (
            "padding",
            lambda r, s, f: (s == s[:, None]) & (r <= r[:, None]),
            "token 0 is padding and reads token 0",
        ),
        (
            "padding",
            lambda r, s, f: right(r, s) | ((s < 0) & (s[:, None] >= 0)),
            "token 0 reads token 1, which is padding",
        ),
        (
            "causal",
            lambda r, s, f: (s == s[:, None]) & (s >= 0),
            "token 0 of rank 0 reads token 1 of rank 1, its future",
        ),
        ("packs_block_diagonally", paired, "token 0 does not read token 2 in"),
    ],
)
def test_every_slip_is_named(law: masks.MaskLaw, mask: Rule, words: str) -> None:
    with pytest.raises(AssertionError, match=f"breaks the law {law}: {words}"):
        check_mask(mask)


def test_every_law_of_masks_has_a_mask_that_breaks_it() -> None:
    (table,) = test_every_slip_is_named.pytestmark  # type: ignore[attr-defined]
    assert {law for law, *_ in table.args[1]} | {"transitive"} == set(masks._BREACHES)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (lambda r, s, f: torch.ones(len(r), dtype=torch.bool), r"shape \(1,\) but the"),
        (
            lambda r, s, f: torch.ones(len(r), len(r)),
            "the mask is torch.float32 of sha",
        ),
    ],
)
def test_a_mask_is_a_rule_or_a_matrix(mask: Rule, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_mask(mask)


@pytest.mark.parametrize(
    ("make", "kind"),
    [(visible_intervals, "KeyIntervals"), (frame_causal_block_mask, "BlockMask")],
)
def test_what_is_no_rule_is_named(make: Callable[..., Any], kind: str) -> None:
    with pytest.raises(ValueError) as error:
        check_mask(lambda r, s, f: make(r, s), rows=strategies.framed_rows())
    assert str(error.value) == (
        f"make_mask gives a {kind}; it must give a rule, as interval_mask makes of "
        "KeyIntervals, or a boolean matrix"
    )


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (torch.ones(2, 2, dtype=torch.bool), "Tensor"),
        (frame_causal_block_mask(torch.tensor([0])), "BlockMask"),
    ],
)
def test_what_makes_no_mask_is_named(made: Any, kind: str) -> None:
    check_a_mask: Any = inspect.unwrap(check_mask)
    with pytest.raises(ValueError) as error:
        check_a_mask(made)
    assert str(error.value) == (
        f"make_mask is a {kind}; it must be a function of causal_ranks, segment_ids "
        "and frame_ids"
    )


def causal_by_place(ranks: Tensor, segments: Tensor, frames: Tensor) -> Tensor:
    """A mask that is right where ranks are sorted."""
    place = torch.arange(len(ranks))
    together = (segments[:, None] == segments) & (segments >= 0)
    return together & (place <= place[:, None])


def test_a_mask_that_needs_sorted_ranks_is_told_how_to_get_them() -> None:
    hint = (
        "Rows are drawn with ranks in any order; a mask that needs them sorted takes "
        "rows=strategies.framed_rows()."
    )
    with pytest.raises(AssertionError) as broken:
        check_mask(causal_by_place)
    assert str(broken.value).endswith(f"  #.\n  ##\n\n{hint}")
    with pytest.raises(ValueError, match="causal_ranks falls from 1 to 0") as refused:
        check_mask(lambda r, s, f: interval_mask(visible_intervals(r, s)))
    assert hint in refused.value.__notes__
    with pytest.raises(ZeroDivisionError) as broken_anyway:
        check_mask(lambda r, s, f: 1 / 0)
    assert hint not in getattr(broken_anyway.value, "__notes__", [])
    check_mask(causal_by_place, rows=strategies.framed_rows())


def test_an_unknown_law_is_named() -> None:
    check_a_mask: Any = inspect.unwrap(check_mask)
    with pytest.raises(ValueError, match="laws has 'casual'; it must be one of reflex"):
        check_a_mask(causal_or_same_frame, laws=["casual"])
    check_a_schedule: Any = inspect.unwrap(check_schedule)
    with pytest.raises(ValueError, match="laws has 'size'; it must be one of length"):
        check_a_schedule(build_schedule, laws=["size"])


@given(strategies.unordered_framed_rows())
def test_frames_follow_ranks(row: strategies.FramedRow) -> None:
    tokens = list(zip(*(values.tolist() for values in row), strict=True))
    for (r, s, f), (other_r, other_s, other_f) in itertools.combinations(tokens, 2):
        if s == other_s and f >= 0 and other_f >= 0:
            assert (r < other_r, r == other_r) == (f < other_f, f == other_f)
        if s == other_s and r == other_r:
            assert f == other_f
            assert s < 0 or f >= 0
    assert all(f == -1 for _, s, f in tokens if s < 0)


@pytest.mark.parametrize(
    "build",
    [
        build_schedule,
        lambda n: repeat_strides(n, (2, 4, 4)),
        lambda n: repeat_strides(n, (2, 4, 4)).strides,
    ],
)
def test_schedules_of_the_library_pass(build: schedules.BuildSchedule) -> None:
    check_schedule(build, max_frames=12, laws=tuple(schedules._BREACHES))


def mirrored(num_frames: int) -> FrameSchedule:
    return build_schedule(num_frames, strategy="last_slow")


@dataclass(frozen=True, kw_only=True)
class NamedSchedule(FrameSchedule):
    """A schedule with something of its own, which JSON does not keep."""

    name: str = "mine"


CALLS = itertools.count(1)


@pytest.mark.parametrize(
    ("law", "build", "words"),
    [
        ("length", lambda n: [4] * (n - n % 3), "it has 0 strides where 1 are needed"),
        (
            "length",
            lambda n: build_schedule(8),
            "it is for 8 frames where 1 were asked",
        ),
        (
            "length",
            lambda n: FrameSchedule(num_frames=n, frames=()),
            "it reads none of 1 frames",
        ),
        (
            "positive",
            lambda n: [4 - t for t in range(n)],
            "frame 4 has stride 0; it mu",
        ),
        (
            "positive",
            lambda n: [n / 2] * n,
            r"frame 0 has stride 0.5; it must be an in",
        ),
        (
            "deterministic",
            lambda n: [next(CALLS)] * n,
            r"first it gives strides \[\d+\], asked again strides \[\d+\]\n\nThe ",
        ),
        (
            "deterministic",
            lambda n: [random.choice([2, 4])] * n,
            r"first it gives strides \[2\], asked again strides \[4\]|\[4\], .* \[2\]",
        ),
        (
            "round_trip",
            lambda n: NamedSchedule(num_frames=n, frames=build_schedule(n).frames),
            "is read as another schedule",
        ),
        ("covers", lambda n: replace(mirrored(n), frames=mirrored(n).frames[1:]), "no"),
        (
            "prefix",
            mirrored,
            "of 2 frames it reads the first 1 otherwise than where th",
        ),
        ("prefix", lambda n: [4] * (n - 1) + [8], "where there are no more: strides "),
    ],
)
def test_every_slip_of_a_schedule_is_named(
    law: schedules.ScheduleLaw, build: schedules.BuildSchedule, words: str
) -> None:
    with pytest.raises(AssertionError, match=f"breaks the law {law}: .*{words}"):
        check_schedule(build, laws=[law])


def test_a_list_that_is_filled_anew_is_no_schedule() -> None:
    kept: list[int] = []

    def refill(num_frames: int) -> list[int]:
        kept[:] = [next(CALLS)] * num_frames
        return kept

    with pytest.raises(AssertionError, match="breaks the law deterministic: first"):
        check_schedule(refill)


def test_a_rare_draw_is_a_breach_or_is_not_seen() -> None:
    for share, seed in itertools.product((0.02, 0.1), range(8)):
        draws = random.Random(seed)

        def build(
            num_frames: int, draws: random.Random = draws, share: float = share
        ) -> list[int]:
            return [2 if draws.random() < share else 4 for _ in range(num_frames)]

        with suppress(AssertionError):
            check_schedule(build, max_frames=4, laws=["deterministic"])


def test_every_law_of_schedules_has_one_that_breaks_it() -> None:
    mark = test_every_slip_of_a_schedule_is_named.pytestmark  # type: ignore[attr-defined]
    assert {law for law, *_ in mark[0].args[1]} == set(schedules._BREACHES)


def test_a_schedule_may_need_frames() -> None:
    def build(num_frames: int) -> FrameSchedule:
        return kernel_schedule(num_frames, (4, 2, 2), edge="floor")

    check_schedule(build, min_frames=4)
    with pytest.raises(AssertionError, match="covers: nothing reads frame 4\n"):
        check_schedule(build, min_frames=4, laws=["covers"])
