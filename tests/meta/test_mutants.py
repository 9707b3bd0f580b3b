"""The laws bite: each slip below, made in a copy of the library, breaks a law.

A mutant is a file, a piece of its text, what stands there instead, and the laws that
are asked. The copy comes before the installed library on the path of a new process.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Mutant(NamedTuple):
    """A slip, and the laws of one file of tests that should notice it."""

    module: str
    text: str
    slip: str
    laws: str


MUTANTS = [
    Mutant(
        "grids",
        "whole + (rest > 0)",
        "whole + (rest > 1)",
        "grids.py -k pooled_grid__covers",
    ),
    Mutant(
        "grids",
        "i * side // count, -(-(i + 1) * side // count)",
        "i * side // count, (i + 1) * side // count",
        "grids.py -k window_bounds__counted",
    ),
    Mutant(
        "schedules",
        "if owed[t + 1] > owed[t]",
        "if owed[t + 1] >= owed[t] + 2 or t == 0",
        "schedules.py -k build_schedule__slow_count",
    ),
    Mutant(
        "schedules",
        "range(num_frames - count, num_frames)",
        "range(num_frames - count - 1, num_frames - 1)",
        "schedules.py -k build_schedule__mirrored",
    ),
    Mutant(
        "schedules",
        "pattern[(t - phase) % len(pattern)]",
        "pattern[(t + phase) % len(pattern)]",
        "schedules.py -k repeat_strides__phase",
    ),
    Mutant(
        "schedule_edits",
        "key=lambda frame: frame.stop",
        "key=lambda frame: frame.start",
        "schedule_edits.py -k merge_streams__time_order",
    ),
    Mutant(
        "frames",
        "(f.stop - f.start, f.stride, f.grid, f.keep)",
        "(1, f.stride, f.grid, f.keep)",
        "frames.py -k its_kind_is_the_frame",
    ),
    Mutant(
        "positions",
        "return (first + end - 1) // 2",
        "return (first + end) // 2",
        "positions.py -k video_positions__",
    ),
    Mutant(
        "ragged",
        "torch.searchsorted(cu_seqlens, items, right=True) - 1\n    return ids",
        "torch.searchsorted(cu_seqlens, items, right=False) - 1\n    return ids",
        "ragged.py -k segment_ids_from_cu_seqlens__",
    ),
    Mutant(
        "ragged",
        "ragged.cu_seqlens[:-1][sequences] - cu_seqlens[:-1]",
        "ragged.cu_seqlens[:-1][sequences] - cu_seqlens[1:]",
        "ragged.py -k select_ragged__",
    ),
    Mutant(
        "_taps",
        "twice = max((2 * window + 1) * side - windows, 0)",
        "twice = max(2 * window * side - windows, 0)",
        "pooling.py -k pool_frames__matches_torch",
    ),
    Mutant(
        "pool_plans",
        "initial=num_cells",
        "initial=0",
        "pool_plans.py -k plan_pooling__matches_reference",
    ),
    Mutant(
        "pooling",
        "plan.cell_starts, plan.back_weights",
        "plan.cell_starts, plan.weights",
        "pooling.py -k pool_tokens__adjoint",
    ),
    Mutant(
        "_taps",
        "(start // scale, -(-stop // scale))",
        "(start // scale, stop // scale + 1)",
        "pool_plans.py -k plan_pooling__matches_reference",
    ),
    Mutant(
        "_taps",
        "first += prod(encoded)",
        "first += prod(grid)",
        "pool_plans.py -k plan_pooling__matches_reference",
    ),
    Mutant(
        "schedule_edits",
        "scales = (1 if t in slow else scale",
        "scales = (scale if t in slow else 1",
        "schedule_edits.py -k scale_fast_frames__slow_untouched",
    ),
    Mutant(
        "_bags",
        "is_beyond = first.abs() > weights.abs()",
        "is_beyond = first.abs() < 0",
        "pooling.py -k a_mean_does_not_hide_infinities",
    ),
    Mutant(
        "_bags",
        "second = (weights - first).to(dtype)",
        "second = torch.zeros_like(first)",
        "pooling.py -k half_precision_is_rounded_once",
    ),
    Mutant(
        "_maxima",
        "rows < least[:, None]",
        "rows <= least[:, None]",
        "pooling.py -k pool_tokens__routes",
    ),
    Mutant(
        "_maxima",
        "winners[here, None] == _countdown(size, winners)",
        "winners[here, None] >= _countdown(size, winners)",
        "pooling.py -k pool_tokens__routes",
    ),
    Mutant(
        "pool_plans",
        "entries=_inverse(moved)[back]",
        "entries=moved[back]",
        "pooling.py -k pool_tokens__routes",
    ),
    Mutant(
        "layouts",
        "frame += span.schedule.num_frames\n",
        "frame = span.schedule.num_frames\n",
        "layouts.py -k build_layout__matches_reference",
    ),
    Mutant(
        "layouts",
        'ranks if attention == "frame_causal" else index',
        'ranks if attention == "causal" else index',
        "layouts.py -k build_layout__frames_share_rank",
    ),
    Mutant(
        "loss_plans",
        "if frame.stop == stop < schedule.num_frames",
        "if frame.stop < schedule.num_frames",
        "loss_plans.py -k plan_next_frame__",
    ),
    Mutant(
        "loss_plans",
        "[start + span for",
        "[start for",
        "loss_plans.py -k plan_next_frame__unseen",
    ),
    Mutant(
        "loss_plans",
        "same_segment & (layout.labels[1:] != IGNORED_LABEL)",
        "(layout.labels[1:] != IGNORED_LABEL)",
        "loss_plans.py -k plan_labels__within_segment",
    ),
    Mutant(
        "loss_plans",
        "targets=layout.labels[rows + 1]",
        "targets=layout.labels[rows]",
        "loss_plans.py -k plan_labels__next_token",
    ),
    Mutant(
        "masks",
        "(query_segment == segment_ids[kv_idx])\n            & ",
        "",
        "masks.py -k frame_causal_mask__no_cross_segment",
    ),
    Mutant(
        "masks",
        "& (causal_ranks[kv_idx] <= causal_ranks[q_idx])",
        "& (causal_ranks[kv_idx] < causal_ranks[q_idx])",
        "masks.py -k frame_causal_mask__preorder",
    ),
    Mutant(
        "masks",
        "return (start[q_idx] <= kv_idx) & (kv_idx < stop[q_idx])\n\n    if",
        "return (start[q_idx] <= kv_idx) & (kv_idx <= stop[q_idx])\n\n    if",
        "masks.py -k interval_mask__matches_rule",
    ),
    Mutant(
        "masks",
        "oldest = segment + (clock - window + 1).clamp(min=0)",
        "oldest = segment + (clock - window).clamp(min=0)",
        "masks.py -k visible_intervals__window_matches_reference",
    ),
    Mutant(
        "block_masks",
        "torch.maximum(-(-high // block_size), first)",
        "torch.maximum(high // block_size, first)",
        "block_masks.py -k matches_create_block_mask",
    ),
    Mutant(
        "block_masks",
        "every, ~whole, none, every, none]",
        "every, every, none, every, none]",
        "block_masks.py -k matches_create_block_mask",
    ),
    Mutant(
        "_block_runs",
        "full_first, full_end = -(-full_first // block_size), full_end // block_size",
        "full_first, full_end = full_first // block_size, full_end // block_size",
        "block_masks.py -k matches_create_block_mask",
    ),
    Mutant(
        "attention",
        "(start <= slots) & (slots < stop) | ~plan.reads[rows, None]",
        "(start <= slots) & (slots <= stop) | ~plan.reads[rows, None]",
        "attention.py -k interval_attention__matches_sdpa",
    ),
    Mutant(
        "attention",
        "mean = (g * o).sum(-1, keepdim=True)",
        "mean = (g * o).mean(-1, keepdim=True)",
        "attention.py -k interval_attention__gradients_match",
    ),
    Mutant(
        "losses",
        "(factors[rows] * upstream)",
        "(factors[rows].square() * upstream)",
        "losses.py -k test_gradcheck",
    ),
    Mutant(
        "losses",
        "(along * ahead - goal) / norms",
        "(ahead - goal) / norms",
        "losses.py -k test_gradcheck",
    ),
    Mutant(
        "losses",
        "shares = shares / lengths_from_cu_seqlens(cu_videos).to(dtype)[video]",
        "shares = shares / frames",
        "losses.py -k next_frame_loss__matches_reference",
    ),
    Mutant(
        "cross_entropy",
        "hidden.index_select(0, plan.rows)",
        "hidden.index_select(0, (plan.rows - 1).clamp(min=0))",
        "cross_entropy.py -k labelled_cross_entropy__matches_cross_entropy",
    ),
    Mutant(
        "online_packing",
        "item in present and total >= capacity",
        "item in present and total >= 2 * capacity",
        "online_packing.py -k next_bin__even",
    ),
    Mutant(
        "_fits",
        "largest[2 * node] < size",
        "largest[2 * node] <= size",
        "packing.py -k first_fit_decreasing__",
    ),
    Mutant(
        "balancing",
        "ranks[queue[0][1]].room < lengths[item]",
        "ranks[queue[0][1]].room <= lengths[item]",
        "balancing.py -k balance__",
    ),
    Mutant(
        "balancing",
        "sorted(range(num_ranks), key=loads.__getitem__)",
        "range(num_ranks)",
        "balancing.py -k deal_rounds__",
    ),
    Mutant(
        "content",
        "differs = (~(similarity >= threshold)).tolist()",
        "differs = (~(similarity > threshold)).tolist()",
        "content.py -k slow_by_similarity__",
    ),
    Mutant(
        "budgets",
        "if slow_stride <= fast_stride:",
        "if slow_stride < fast_stride:",
        "budgets.py -k schedule_for_budget__",
    ),
    Mutant(
        "varlen",
        "stop[tokens] > tokens + 1",
        "stop[tokens] > tokens",
        "varlen.py -k varlen_plan__",
    ),
    Mutant(
        "accounting",
        "kept[intervals.start] - kept[intervals.kept.start]",
        "kept[intervals.stop] - kept[intervals.kept.start]",
        "accounting.py -k visible_pairs__matches_reference",
    ),
]


@pytest.fixture(scope="module")
def pytest_process(start_preloaded: Any) -> Any:
    """Have a process that starts pytest, with what laws import beside the library."""
    return start_preloaded("beartype", "einops", "hypothesis", "jaxtyping", "torch")


def run_laws(pytest_process: Any, folder: Path, laws: str) -> tuple[int, str]:
    """Run some laws on the library in a folder; give pytest's status and last line."""
    file, _, options = laws.partition(" ")
    command = [str(Path(sys.executable).with_name("pytest")), "-x", "-q"]
    # Plugins are imported already, so their assertions cannot be rewritten.
    command += ["--assert", "plain", "-p", "no:cacheprovider"]
    # A law has to notice, not an annotation.
    command += ["--jaxtyping-packages="]
    command += [f"tests/laws/test_{file}", *options.split()]
    log = folder / "pytest.log"
    path = f"{folder}{os.pathsep}{ROOT}"
    status: int = pytest_process.wait(
        pytest_process.start(
            *command, log=log, PYTHONPATH=path, HYPOTHESIS_PROFILE="mutants"
        )
    )
    said = log.read_text()
    print(said[-2000:])
    return status, said.splitlines()[-1]


def copy_library(folder: Path) -> Path:
    """Copy the library to a folder."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fastslow", folder / "fastslow", ignore=ignored)
    return folder / "fastslow"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.module}: {m.slip[:40]}")
def test_a_law_notices(mutant: Mutant, pytest_process: Any, tmp_path: Path) -> None:
    file = copy_library(tmp_path) / f"{mutant.module}.py"
    source = file.read_text()
    assert source.count(mutant.text) == 1, "the mutant's text must stand there once"
    file.write_text(source.replace(mutant.text, mutant.slip))
    status, said = run_laws(pytest_process, tmp_path, mutant.laws)
    assert status == pytest.ExitCode.TESTS_FAILED
    assert said.startswith("1 failed")


def test_a_faithful_copy_passes(pytest_process: Any, tmp_path: Path) -> None:
    copy_library(tmp_path)
    status, said = run_laws(pytest_process, tmp_path, MUTANTS[0].laws)
    assert status == pytest.ExitCode.OK
    assert said.startswith("1 passed")


def test_there_are_enough_mutants() -> None:
    assert len(MUTANTS) >= 20
