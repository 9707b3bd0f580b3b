"""Questions that a model was not trained on."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastslow import StreamState, best_fit_decreasing, to_device
from fastslow.qwen2_vl import FastSlowOutput, FastSlowQwen2VL
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.loader import PackedRows, count_rows, read_rows
from recipes.edge.data.sample_set import PlannedSamples
from recipes.edge.ranks.distributed import World, sum_over_ranks


@torch.no_grad()
def ask_questions(
    model: FastSlowQwen2VL,
    questions: PackedRows,
    world: World,
    report_bad: Callable[[list[BadSample]], object],
    *,
    terms: Sequence[str],
    measure: Callable[[FastSlowOutput], list[Tensor]],
    num_workers: int = 0,
    pin_memory: bool = False,
) -> dict[str, float]:
    """Ask every question; an answer counts when all of its tokens are right.

    All tokens are scored in one pass under the true answer. Greedy decoding gives that
    answer exactly when each of its tokens is the most likely one after those before.

    Args:
        model: The model; it is left in evaluation mode.
        questions: They are packed into rows of their capacity and dealt to ranks.
        world: The ranks; all call this together.
        report_bad: Takes the samples of this rank that could not be decoded.
        terms: What ``measure`` gives, by name.
        measure: Gives what is summed over the rows, beside the answers.
        num_workers: Processes that decode ahead; 0 decodes in this one.
        pin_memory: Whether rows wait in page-locked memory, which needs a GPU.

    Returns:
        Sums over all ranks: questions that were ``asked``, among them those that could
        not be decoded, and those answered ``right``; each of the terms, and what they
        are divided by, ``labels`` and ``pairs``.
    """
    bins = pack_questions(questions.samples)
    model.eval()
    asked, right, labels, pairs, bad = 0, 0, 0.0, 0.0, list[BadSample]()
    sums = torch.zeros(len(terms), dtype=torch.float64, device=world.device)
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
        output = model(patches, plan, read_logits=lambda each: each.argmax(-1))
        sums += torch.stack(measure(output))
        wrong = output.logits != plan.labels.targets
        missed = plan.layout.segment_ids[plan.labels.rows][wrong].unique()
        asked += len(row.sample_ids) + len(row.bad)
        right += len(row.sample_ids) - len(missed)
        bad.extend(row.bad)
        counts = count_rows([row])
        labels, pairs = labels + counts["labels"], pairs + counts["pairs"]
    report_bad(bad)
    found = {"right": right, "asked": asked, "labels": labels, "pairs": pairs}
    losses = dict(zip(terms, sums.tolist(), strict=True))
    return sum_over_ranks(found | losses, world)


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
