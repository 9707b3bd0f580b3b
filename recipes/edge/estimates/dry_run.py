"""What a run would take, said before it starts and without a GPU."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
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
from recipes.config import Config, with_settings
from recipes.edge.data.loader import ROW_MULTIPLE, padded_length
from recipes.edge.data.samples import tower_tokens
from recipes.edge.estimates.devices import Device
from recipes.edge.estimates.memory import Memory, estimate_memory
from recipes.edge.training.parallel import check_copies
from recipes.edge.weights.loading import meta_model
from recipes.settings.values import by_dotted_name

USABLE = 0.92
"""Share of a GPU's memory that a plan may take. The rest is for CUDA itself, for the
workspaces of its kernels and for gaps between tensors, which are not estimated."""

MOST_ROWS = 2000
"""Rows that are packed to learn how full they are and which is the worst."""

COUNTED_ROWS = 16
"""Rows of which FLOPs are counted; their order is random, so they stand for all."""

Sample = Sequence[Span]


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
    lay_out: Callable[[int], Sample]


def at_hand(samples: Sequence[Sample], family: Family) -> Samples:
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


def fits(plan: Plan, memory: Memory) -> bool:
    """Tell whether a step's memory is within what the GPU can give."""
    return memory.total <= USABLE * plan.device.memory_bytes


def first_that_fits(plan: Plan, samples: Samples) -> tuple[str, Memory] | None:
    """Find what to change where a step does not fit.

    Mild changes are made one on top of the other: recompute activations, keep fewer
    copies, shorten rows. Where all of them are not enough, they begin anew on top of
    one more: use the host's memory, train adapters, or take more GPUs. Once a step
    fits, mild changes that it does not need are dropped, the dearest first.

    Args:
        plan: A plan that does not fit.
        samples: As for ``forecast``.

    Returns:
        The flags of the first plan that fits, and what a step takes; None if none does.
    """
    mild = _mild_changes(plan.config, samples)
    for last in ([], *([change] for change in _last_changes(plan.config))):
        found = _fewest_that_fit(plan, mild, last, samples)
        if found is not None:
            needed, memory = _drop_needless(plan, *found, last, samples)
            return _flags(needed), memory
    return None


def most_changes(plan: Plan, samples: Samples) -> str:
    """Say in words how far ``first_that_fits`` goes before it finds nothing.

    Args:
        plan: A plan that does not fit.
        samples: As for ``forecast``.

    Returns:
        The flags of all mild changes, and those of which one is added.
    """
    mild = _flags(_mild_changes(plan.config, samples))
    last = ", ".join(_flags([change]) for change in _last_changes(plan.config))
    return f"{mild} and one of {last}" if mild else f"one of {last}"


def report(plan: Plan, found: Forecast, samples: Samples) -> str:
    """Write a forecast out.

    Args:
        plan: What it was made for.
        found: The forecast.
        samples: The samples, whose first clip is shown.

    Returns:
        Lines of text.
    """
    config, device = plan.config, plan.device
    memory, flops, rows = found.memory, found.flops, config.rows_per_step
    step = flops.total * rows
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
        "rows": _rows(found, samples, config.tokens_per_row),
        "worst": f"{int(worst.grid_thw.prod(1).sum()):,} patches, "
        f"{len(worst.video_rows):,} video tokens, {len(worst.labels.rows):,} labels",
        "memory": f"each of {config.num_gpus} {device.name}, in GiB",
        **_table(memory),
        "  total": f"{_gib(memory.total)} of {_gib(device.memory_bytes).strip()}, "
        f"of which {USABLE:.0%} may be planned",
        "step": f"{step:.3g} FLOPs of each GPU in {rows} rows: {shares}",
        **_time(plan, step, found.fill * config.tokens_per_row * rows),
    }
    return "\n".join(f"{name:14} {words}" for name, words in lines.items())


def _time(plan: Plan, flops: float, tokens: float) -> dict[str, str]:
    """Say how long a step lasts; nothing where the known peak is not that of it."""
    config = plan.config
    if config.parallel.compute != "bfloat16":
        return {}
    seconds = flops / (config.assumed_mfu * plan.device.bf16_flops)
    return {
        "time": f"{seconds:.2f} s a step at an MFU of {config.assumed_mfu:.0%}, "
        f"{tokens / seconds:,.0f} tokens a second and GPU"
    }


def _rows(found: Forecast, samples: Samples, capacity: int) -> str:
    """Say how many rows a pass over the samples is, and how full they are."""
    words = f"rows of {capacity:,} tokens, {found.fill:.1%} full"
    if len(set(chain.from_iterable(found.bins))) == len(samples.lengths):
        return f"{len(found.bins)} {words}"
    whole = sum(samples.lengths) / (found.fill * capacity)
    return f"about {whole:,.0f} {words}, by {len(found.bins):,} of them"


def _first_clip(samples: Samples) -> str:
    """Draw the schedule of a clip, with its tokens with and without it."""
    shown = (number for number, patches in enumerate(samples.patches) if patches)
    spans = chain.from_iterable(map(samples.lay_out, shown))
    clip = next((span for span in spans if isinstance(span, VideoSpan)), None)
    if clip is None:
        return "none, text alone"
    before = clip.schedule.num_frames * prod(clip.grid)
    return f"{describe_schedule(clip.grid, clip.schedule)}, {before:,} unpooled"


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


_Change = Mapping[str, Any]
"""Settings that are changed together, as a YAML file names them."""


def _flags(changes: Sequence[_Change]) -> str:
    """Write changes as a command line does; a later one overrides an earlier one."""
    settings = dict(pair for change in changes for pair in by_dotted_name(change))
    return " ".join(
        f"--{name.replace('_', '-')}" + (f" {value}" if value is not True else "")
        for name, value in settings.items()
    )


def _memory_that_fits(
    plan: Plan, changes: Sequence[_Change], samples: Samples
) -> Memory | None:
    """Tell what a step takes after some changes; None if it does not fit."""
    plan = _changed(plan, changes)
    bins = _pack(samples.lengths, plan.config)
    _, memory = _step(plan, _worst_row(plan, samples, bins))
    return memory if fits(plan, memory) else None


def _changed(plan: Plan, changes: Sequence[_Change]) -> Plan:
    """Make changes in turn; a later one overrides an earlier one."""
    for change in changes:
        plan = replace(plan, config=with_settings(plan.config, change))
    return plan


def _fewest_that_fit(
    plan: Plan, mild: Sequence[_Change], last: Sequence[_Change], samples: Samples
) -> tuple[Sequence[_Change], Memory] | None:
    """Give the mild changes up to the first with which the plan fits; None if none do.

    Each takes less memory than the one before it, so halves of them are ruled out.
    """
    found = _memory_that_fits(plan, [*mild, *last], samples)
    if found is None:
        return None
    low, high = 0, len(mild)
    while low < high:
        middle = (low + high) // 2
        memory = _memory_that_fits(plan, [*mild[:middle], *last], samples)
        if memory is None:
            low = middle + 1
        else:
            high, found = middle, memory
    return mild[:high], found


def _drop_needless(
    plan: Plan,
    mild: Sequence[_Change],
    found: Memory,
    last: Sequence[_Change],
    samples: Samples,
) -> tuple[list[_Change], Memory]:
    """Drop the mild changes without which the plan still fits, the dearest first.

    The last of them is needed, since the plan did not fit without it.
    """
    changes = [*mild, *last]
    for dearest in reversed(mild[:-1]):
        fewer = [change for change in changes if change is not dearest]
        without: Memory | None = found
        if _changed(plan, fewer) != _changed(plan, changes):
            without = _memory_that_fits(plan, fewer, samples)
        if without is not None:
            changes, found = fewer, without
    return changes, found


def _mild_changes(config: Config, samples: Samples) -> list[_Change]:
    """Give changes that cost time alone, the cheapest first.

    Those of one setting follow each other, and each takes less memory than the one
    before it, which it overrides. Rows are halved, to lengths that a GPU's are padded
    to, as long as each sample fits one; a step has at least as many tokens.
    """
    now = config.parallel.activation_checkpointing
    kinds = ("none", "selective", "full")
    changes: list[_Change] = [
        {"parallel": {"activation_checkpointing": kind}}
        for kind in kinds[kinds.index(now) + 1 :]
    ]
    for copies in range(config.parallel.replicate - 1, 0, -1):
        if config.num_gpus % copies == 0:
            changes.append({"parallel": {"replicate": copies}})
    shortest = padded_length(max(samples.lengths))
    tokens = config.tokens_per_row
    whole = tokens * config.gradient_accumulation_steps
    while tokens > shortest:
        tokens = max(tokens // (2 * ROW_MULTIPLE) * ROW_MULTIPLE, shortest)
        rows = -(-whole // tokens)
        changes.append({"tokens_per_row": tokens, "gradient_accumulation_steps": rows})
    return changes


def _last_changes(config: Config) -> Iterator[_Change]:
    """Yield the changes of which one is made at most, on top of mild ones."""
    parallel = config.parallel
    if not parallel.cpu_offload:
        yield {"parallel": {"cpu_offload": True}}
    if not parallel.lora_rank and parallel.tower == "frozen":
        yield {"parallel": {"lora_rank": 16}}
    for more in (2, 4, 8, 16):
        yield {"num_gpus": more * config.num_gpus}


def _table(memory: Memory) -> dict[str, str]:
    """Write what each part of the memory takes."""
    return {f"  {name}": _gib(value) for name, value in vars(memory).items() if value}


def _gib(size: int) -> str:
    """Write bytes as GiB."""
    return f"{size / 2**30:8.2f}"
