"""Questions that a model was not trained on."""

from collections.abc import Callable

import torch

from fastslow import StreamState, best_fit_decreasing, to_device
from fastslow.qwen2_vl import FastSlowQwen2VL
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.loader import PackedRows, read_rows
from recipes.edge.data.sample_set import PlannedSamples
from recipes.edge.ranks.distributed import World, sum_over_ranks


@torch.no_grad()
def held_out_accuracy(
    model: FastSlowQwen2VL,
    questions: PackedRows,
    world: World,
    report_bad: Callable[[list[BadSample]], object],
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> tuple[float, int]:
    """Ask every question; an answer counts when all of its tokens are right.

    All tokens are scored in one pass under the true answer. Greedy decoding gives that
    answer exactly when each of its tokens is the most likely one after those before.

    Args:
        model: The model; it is left in evaluation mode.
        questions: They are packed into rows of their capacity and dealt to ranks.
        world: The ranks; all call this together.
        report_bad: Takes the samples of this rank that could not be decoded.
        num_workers: Processes that decode ahead; 0 decodes in this one.
        pin_memory: Whether rows wait in page-locked memory, which needs a GPU.

    Returns:
        Share of right answers over all ranks, and the number of questions; 0 and 0
        where there is none. What cannot be decoded is asked, and not answered.
    """
    bins = pack_questions(questions.samples)
    model.eval()
    asked, right, bad = 0, 0, list[BadSample]()
    rounds = -(-len(bins) // world.size)
    mine = [
        bins[number] if number < len(bins) else ()
        for number in range(world.rank, rounds * world.size, world.size)
    ]
    rows = read_rows(
        questions,
        [(chosen, StreamState()) for chosen in mine],
        num_workers=num_workers,
        pin_memory=pin_memory,
    )
    for row in rows:
        plan = to_device(row.plan, world.device)
        patches = row.patches.to(world.device, non_blocking=True)
        sum_over_ranks({}, world)  # clips take any time; the model's collectives do not
        chosen = model(patches, plan, read_logits=lambda each: each.argmax(-1)).logits
        wrong = chosen != plan.labels.targets
        missed = plan.layout.segment_ids[plan.labels.rows][wrong].unique()
        asked += len(row.sample_ids) + len(row.bad)
        right += len(row.sample_ids) - len(missed)
        bad.extend(row.bad)
    report_bad(bad)
    total = sum_over_ranks({"right": right, "asked": asked}, world)
    return total["right"] / max(total["asked"], 1), int(total["asked"])


def pack_questions(questions: PlannedSamples) -> list[tuple[int, ...]]:
    """Fill rows with questions; where archives come and go, with one archive's each.

    Args:
        questions: All of them.

    Returns:
        Questions by row; those of one archive come one after another.
    """
    members = dict[int, list[int]]()
    for number, group in enumerate(questions.groups or [0] * len(questions)):
        members.setdefault(group, []).append(number)
    bins = list[tuple[int, ...]]()
    for numbers in members.values():
        lengths = [questions.lengths[number] for number in numbers]
        packed = best_fit_decreasing(lengths, questions.settings.capacity)
        bins += [tuple(numbers[place] for place in each) for each in packed]
    return bins
