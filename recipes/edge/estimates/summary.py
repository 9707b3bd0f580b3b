"""A forecast in words."""

from itertools import chain
from math import prod

from fastslow import VideoSpan, describe_schedule
from recipes.edge.estimates.forecast import USABLE, Forecast, Plan, Samples
from recipes.edge.estimates.memory import Memory


def summarise(plan: Plan, found: Forecast, samples: Samples) -> str:
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


def _table(memory: Memory) -> dict[str, str]:
    """Write what each part of the memory takes."""
    return {f"  {name}": _gib(value) for name, value in vars(memory).items() if value}


def _gib(size: int) -> str:
    """Write bytes as GiB."""
    return f"{size / 2**30:8.2f}"
