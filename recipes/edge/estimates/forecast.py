"""What a run would take, said before it starts and without a GPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from fastslow import Span, StreamState, VideoSpan, count_tokens, fill, next_bin
from fastslow.qwen2_vl import (
    Family,
    FastSlowQwen2VL,
    RowPlan,
    StepFlops,
    blank_clip,
    family_of,
    plan_row,
    step_flops,
)
from recipes.config import Config
from recipes.edge.data.loader import padded_length
from recipes.edge.data.samples import tower_tokens
from recipes.edge.estimates.devices import Device
from recipes.edge.estimates.memory import Memory, estimate_memory
from recipes.edge.training.parallel import check_copies
from recipes.edge.weights.loading import meta_model

USABLE = 0.92
"""Share of a GPU's memory that a plan may take. The rest is for CUDA itself, for the
workspaces of its kernels and for gaps between tensors, which are not estimated."""

MOST_ROWS = 2000
"""Rows that are packed to learn how full they are and which is the worst."""

COUNTED_ROWS = 16
"""Rows of which FLOPs are counted; their order is random, so they stand for all."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples like those of a run: at least one, and each fits a row.

    Some thousand rows are looked at. The token ids of a million samples would fill the
    memory of a machine, so a sample is laid out when it is.

    Attributes:
        lengths: Tokens of each.
        patches: Patches that enter the tower, of each.
        lay_out: Gives a sample by its number.
    """

    lengths: Sequence[int]
    patches: Sequence[int]
    lay_out: Callable[[int], Sequence[Span]]


def at_hand(samples: Sequence[Sequence[Span]], family: Family) -> Samples:
    """Take samples that are laid out already."""
    area = family.geometry.merge_size**2
    return Samples(
        lengths=[count_tokens(sample) for sample in samples],
        patches=[area * tower_tokens(sample) for sample in samples],
        lay_out=samples.__getitem__,
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a forecast is made for.

    Attributes:
        config: Settings of the run.
        shape: What the model looks like.
        device: The GPU of each rank.
    """

    config: Config
    shape: PreTrainedConfig
    device: Device


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a step takes.

    Attributes:
        bins: Rows that were packed, as numbers of samples.
        fill: Share of their capacity that holds tokens.
        worst: The row with the most patches, which takes the most memory.
        memory: Bytes of a rank that computes it.
        flops: Useful FLOPs of a row in the mean, forward and backward.
        parameters: Parameters of the whole model, and those that train.
    """

    bins: tuple[tuple[int, ...], ...]
    fill: float
    worst: RowPlan
    memory: Memory
    flops: StepFlops
    parameters: tuple[int, int]


def forecast(plan: Plan, samples: Samples) -> Forecast:
    """Pack rows as the run will, and take a step over the worst without any memory.

    Every sample is packed once, as far as ``MOST_ROWS`` go.

    Args:
        plan: What is asked for.
        samples: Samples like those of the run.

    Returns:
        What the step takes.

    Raises:
        ValueError: If ``replicate`` does not divide the number of ranks.
    """
    bins = _pack(samples.lengths, plan.config)
    worst = _worst_row(plan, samples, bins)
    model, memory = _step(plan, worst)
    weights = [(p.numel(), p.requires_grad) for p in model.parameters()]
    counted = [
        step_flops(model, _row(plan, samples, each)) for each in bins[:COUNTED_ROWS]
    ]
    return Forecast(
        bins=tuple(bins),
        fill=fill(samples.lengths, bins, plan.config.tokens_per_row),
        worst=worst,
        memory=memory,
        flops=_mean(counted),
        parameters=(
            sum(count for count, _ in weights),
            sum(count for count, trains in weights if trains),
        ),
    )


def step_memory(plan: Plan, samples: Samples) -> Memory:
    """Tell what a step over the worst row takes, see ``forecast``."""
    bins = _pack(samples.lengths, plan.config)
    return _step(plan, _worst_row(plan, samples, bins))[1]


def fits(plan: Plan, memory: Memory) -> bool:
    """Tell whether a step's memory is within what the GPU can give."""
    return memory.total <= USABLE * plan.device.memory_bytes


def _pack(lengths: Sequence[int], config: Config) -> list[tuple[int, ...]]:
    """Pack until every sample has been in a row, or as many as are worth looking at."""
    bins, state = list[tuple[int, ...]](), StreamState()
    left = set(range(len(lengths)))
    while left and len(bins) < MOST_ROWS:
        chosen, state = next_bin(
            lengths, config.tokens_per_row, state, window=config.packing_window, seed=0
        )
        bins.append(chosen)
        left.difference_update(chosen)
    return bins


def _worst_row(
    plan: Plan, samples: Samples, bins: Sequence[tuple[int, ...]]
) -> RowPlan:
    """Lay out the row with the most patches."""
    patches = samples.patches
    worst = max(bins, key=lambda row: sum(patches[number] for number in row))
    return _row(plan, samples, worst)


def _step(plan: Plan, row: RowPlan) -> tuple[FastSlowQwen2VL, Memory]:
    """Take a step over a row without any memory; give the model, and what it took."""
    config, parallel = plan.config, plan.config.parallel
    check_copies(config.num_gpus, parallel.replicate)
    model = meta_model(plan.shape)
    if not config.loss_weight:
        model.drop_next_frame()
    return model, estimate_memory(model, parallel, row, world_size=config.num_gpus)


def _row(plan: Plan, samples: Samples, chosen: Sequence[int]) -> RowPlan:
    """Lay out a row of samples, padded as on a GPU, with a clip at least."""
    family = family_of(plan.shape)
    row = [samples.lay_out(number) for number in chosen]
    if not any(isinstance(span, VideoSpan) for sample in row for span in sample):
        row.append((blank_clip(family.geometry)[0],))
    count = sum(map(count_tokens, row))
    return plan_row(
        row,
        video_token_id=plan.shape.video_token_id,
        family=family,
        attention=plan.config.attention,
        pool_mode=plan.config.mm_spatial_pool_mode,
        length=padded_length(max(plan.config.tokens_per_row, count)),
    )


def _mean(rows: Sequence[StepFlops]) -> StepFlops:
    """Give the mean of each part."""
    return StepFlops(
        tower=sum(row.tower for row in rows) // len(rows),
        language_model=sum(row.language_model for row in rows) // len(rows),
        heads=sum(row.heads for row in rows) // len(rows),
    )
