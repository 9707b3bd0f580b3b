"""What a run would take, said before it starts and without a GPU."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from transformers import PreTrainedConfig

from fastslow import (
    Span,
    StreamState,
    VideoSpan,
    count_tokens,
    describe_schedule,
    fill,
    next_bin,
)
from fastslow.layouts import Attention
from fastslow.pool_plans import Mode
from fastslow.qwen2_vl import (
    RowPlan,
    StepFlops,
    blank_clip,
    family_of,
    plan_row,
    step_flops,
)
from recipes.edge.devices import Device
from recipes.edge.memory import Memory, estimate_memory
from recipes.edge.parallel import Parallel
from recipes.edge.samples import tower_tokens
from recipes.edge.weights import meta_model

USABLE = 0.92
"""Share of a GPU's memory that a plan may take. The rest is for CUDA itself, for the
workspaces of its kernels and for gaps between tensors, which are not estimated."""

MOST_ROWS = 2000
"""Rows that are packed to learn how full they are and which is the worst."""

COUNTED_ROWS = 16
"""Rows of which FLOPs are counted; their order is random, so they stand for all."""

Sample = Sequence[Span]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a forecast is made for.

    Attributes:
        shape: What the model looks like.
        parallel: How it is computed and spread.
        num_gpus: Number of ranks.
        device: The GPU of each.
        tokens_per_row: Tokens of a packed row at most.
        rows: Packed rows of each rank in one optimizer step.
        mfu: Share of the GPU's peak that a step is supposed to reach.
        window: Samples from which a row is packed.
        next_frame: Whether the next-frame loss is on.
        attention: Whether the tokens of a frame read each other both ways.
        pool_mode: How the tokens of a window become one.
    """

    shape: PreTrainedConfig
    parallel: Parallel
    num_gpus: int
    device: Device
    tokens_per_row: int
    rows: int
    mfu: float
    window: int
    next_frame: bool = True
    attention: Attention = "frame_causal"
    pool_mode: Mode = "average"


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


def forecast(plan: Plan, samples: Sequence[Sample]) -> Forecast:
    """Pack rows as the run will, and take a step over the worst without any memory.

    Every sample is packed once, as far as ``MOST_ROWS`` go.

    Args:
        plan: What is asked for.
        samples: Samples like those of the run, at least one; each fits a row.

    Returns:
        What the step takes.

    Raises:
        ValueError: If ``replicate`` does not divide the number of ranks, or the model
            is not of the type whose tower can run without values.
    """
    if plan.shape.model_type != "qwen2_vl":
        raise ValueError(
            f"model_type is {plan.shape.model_type!r}; a dry run knows 'qwen2_vl', the "
            "towers of the others read sizes from tensors that have no values here"
        )
    if plan.num_gpus % plan.parallel.replicate:
        raise ValueError(
            f"replicate is {plan.parallel.replicate} but there are {plan.num_gpus} "
            "ranks; it must divide them"
        )
    lengths = [count_tokens(sample) for sample in samples]
    bins = _pack(lengths, plan)
    patches = [tower_tokens(sample) for sample in samples]
    worst = max(bins, key=lambda row: sum(patches[number] for number in row))
    row = _row(plan, samples, worst)
    model = meta_model(plan.shape)
    if not plan.next_frame:
        model.drop_next_frame()
    memory = estimate_memory(model, plan.parallel, row, world_size=plan.num_gpus)
    weights = [(p.numel(), p.requires_grad) for p in model.parameters()]
    counted = [
        step_flops(model, _row(plan, samples, each)) for each in bins[:COUNTED_ROWS]
    ]
    return Forecast(
        bins=tuple(bins),
        fill=fill(lengths, bins, plan.tokens_per_row),
        worst=row,
        memory=memory,
        flops=_mean(counted),
        parameters=(
            sum(count for count, _ in weights),
            sum(count for count, trains in weights if trains),
        ),
    )


def fits(plan: Plan, found: Forecast) -> bool:
    """Tell whether a step's memory is within what the GPU can give."""
    return found.memory.total <= USABLE * plan.device.memory_bytes


def first_that_fits(
    plan: Plan, samples: Sequence[Sample]
) -> tuple[str, Forecast] | None:
    """Find what to change where a step does not fit.

    Changes are tried in a fixed order, each on top of those before it, the cheapest
    first: recompute activations, shorten rows, use the host's memory, train adapters,
    take more GPUs. Once a step fits, earlier changes that it does not need are dropped,
    the dearest first.

    Args:
        plan: A plan that does not fit.
        samples: As for ``forecast``.

    Returns:
        The flags of the first plan that fits, and its forecast; None if none does.
    """
    longest = max(count_tokens(sample) for sample in samples)
    for changes in _changes(plan, longest):
        found = _forecast_that_fits(plan, changes, samples)
        if found is not None:
            needed, found = _drop_needless(plan, changes, found, samples)
            return " ".join(change.flags for change in needed), found
    return None


def report(plan: Plan, found: Forecast, samples: Sequence[Sample]) -> str:
    """Write a forecast out.

    Args:
        plan: What it was made for.
        found: The forecast.
        samples: The samples, whose first clip is shown.

    Returns:
        Lines of text.
    """
    memory, flops, device = found.memory, found.flops, plan.device
    step = flops.total * plan.rows
    seconds = step / (plan.mfu * device.bf16_flops)
    tokens = found.fill * plan.tokens_per_row * plan.rows
    shares = ", ".join(
        f"{name} {part / flops.total:.0%}"
        for name, part in (
            ("tower", flops.tower),
            ("language model", flops.language_model),
            ("heads", flops.heads),
        )
    )
    whole, trained = found.parameters
    worst = found.worst
    lines = {
        "model": f"{whole:,} parameters, {trained:,} of them trained",
        "clip": _first_clip(samples),
        "rows": f"{len(found.bins)} rows of {plan.tokens_per_row:,} tokens, "
        f"{found.fill:.1%} full",
        "worst": f"{int(worst.grid_thw.prod(1).sum()):,} patches, "
        f"{len(worst.video_rows):,} video tokens, {len(worst.labels.rows):,} labels",
        "memory": f"each of {plan.num_gpus} {device.name}, in GiB",
        **_table(memory),
        "  total": f"{_gib(memory.total)} of {_gib(device.memory_bytes).strip()}, "
        f"of which {USABLE:.0%} may be planned",
        "step": f"{step:.3g} FLOPs of each GPU in {plan.rows} rows: {shares}",
        "time": f"{seconds:.2f} s a step at an MFU of {plan.mfu:.0%}, "
        f"{tokens / seconds:,.0f} tokens a second and GPU",
    }
    return "\n".join(f"{name:14} {words}" for name, words in lines.items())


def _first_clip(samples: Sequence[Sample]) -> str:
    """Draw the schedule of a clip, with its tokens with and without it."""
    spans = (span for sample in samples for span in sample)
    clip = next((span for span in spans if isinstance(span, VideoSpan)), None)
    if clip is None:
        return "none, text alone"
    before = clip.schedule.num_frames * prod(clip.grid)
    return f"{describe_schedule(clip.schedule, clip.grid)}, {before:,} unpooled"


def _pack(lengths: Sequence[int], plan: Plan) -> list[tuple[int, ...]]:
    """Pack until every sample has been in a row, or as many as are worth looking at."""
    bins, state = list[tuple[int, ...]](), StreamState()
    left = set(range(len(lengths)))
    while left and len(bins) < MOST_ROWS:
        chosen, state = next_bin(
            lengths, plan.tokens_per_row, state, window=plan.window, seed=0
        )
        bins.append(chosen)
        left.difference_update(chosen)
    return bins


def _row(plan: Plan, samples: Sequence[Sample], chosen: Sequence[int]) -> RowPlan:
    """Lay a row of samples out, as long as rows are at most, with a clip at least."""
    family = family_of(plan.shape)
    row = [samples[number] for number in chosen]
    if not any(isinstance(span, VideoSpan) for sample in row for span in sample):
        row.append((blank_clip(family.geometry)[0],))
    return plan_row(
        row,
        video_token_id=plan.shape.video_token_id,
        family=family,
        attention=plan.attention,
        pool_mode=plan.pool_mode,
        length=max(plan.tokens_per_row, sum(map(count_tokens, row))),
    )


def _mean(rows: Sequence[StepFlops]) -> StepFlops:
    """Give the mean of each part."""
    return StepFlops(
        tower=sum(row.tower for row in rows) // len(rows),
        language_model=sum(row.language_model for row in rows) // len(rows),
        heads=sum(row.heads for row in rows) // len(rows),
    )


@dataclass(frozen=True, kw_only=True)
class _Change:
    """One change of a plan: its flags, and the fields that they set."""

    flags: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    parallel: Mapping[str, Any] = field(default_factory=dict)


def _forecast_that_fits(
    plan: Plan, changes: Sequence[_Change], samples: Sequence[Sample]
) -> Forecast | None:
    """Forecast a plan after some changes; None if it does not fit."""
    for change in changes:
        parallel = replace(plan.parallel, **change.parallel)
        plan = replace(plan, parallel=parallel, **change.fields)
    found = forecast(plan, samples)
    return found if fits(plan, found) else None


def _drop_needless(
    plan: Plan, changes: list[_Change], found: Forecast, samples: Sequence[Sample]
) -> tuple[list[_Change], Forecast]:
    """Drop the changes before the last one without which the plan still fits."""
    for earlier in reversed(changes[:-1]):
        fewer = [change for change in changes if change is not earlier]
        without = _forecast_that_fits(plan, fewer, samples)
        if without is not None:
            changes, found = fewer, without
    return changes, found


def _changes(plan: Plan, longest: int) -> Iterator[list[_Change]]:
    """Yield combinations of changes after which a plan takes less and less memory.

    A later change of recomputation overrides an earlier one.
    """
    made: list[_Change] = []
    kinds = ("none", "selective", "full")
    for kind in kinds[kinds.index(plan.parallel.activation_checkpointing) + 1 :]:
        flags = f"--parallel.activation-checkpointing {kind}"
        settings = {"activation_checkpointing": kind}
        made = [*made, _Change(flags=flags, parallel=settings)]
        yield made
    shorter = max(plan.tokens_per_row // 2, -(-longest // 128) * 128)
    if shorter < plan.tokens_per_row:
        flags = (
            f"--tokens-per-row {shorter} --per-device-train-batch-size 1 "
            f"--gradient-accumulation-steps {2 * plan.rows}"
        )
        fields = {"tokens_per_row": shorter, "rows": 2 * plan.rows}
        made = [*made, _Change(flags=flags, fields=fields)]
        yield made
    for change in _last_changes(plan):
        yield [*made, change]


def _last_changes(plan: Plan) -> Iterator[_Change]:
    """Yield the changes that are not tried on top of each other."""
    if not plan.parallel.cpu_offload:
        yield _Change(flags="--parallel.cpu-offload", parallel={"cpu_offload": True})
    if not plan.parallel.lora_rank and plan.parallel.tower == "frozen":
        yield _Change(flags="--parallel.lora-rank 16", parallel={"lora_rank": 16})
    for more in (2, 4, 8, 16):
        wider = more * plan.num_gpus
        yield _Change(flags=f"--num-gpus {wider}", fields={"num_gpus": wider})


def _table(memory: Memory) -> dict[str, str]:
    """Write what each part of the memory takes."""
    return {f"  {name}": _gib(value) for name, value in vars(memory).items() if value}


def _gib(size: int) -> str:
    """Write bytes as GiB."""
    return f"{size / 2**30:8.2f}"
