"""Tell what is in a dataset before a run, and draw one of its samples.

    python recipes/inspect_data.py DATA
    python recipes/inspect_data.py DATA --config recipes/configs/qwen2vl_7b.yaml
    python recipes/inspect_data.py DATA --unusable unusable.jsonl
    python recipes/inspect_data.py DATA --show ID --output sample.png
    python recipes/inspect_data.py --help

DATA is what ``--data-path`` of a recipe takes. Only what is drawn is decoded.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import tyro

from fastslow import best_fit_decreasing, describe_schedule, fill
from fastslow.qwen2_vl import family_of
from recipes.command_line import given_words
from recipes.config import Config, load_config
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.quarantine import as_lines
from recipes.edge.data.sample_picture import draw_sample
from recipes.edge.data.sample_set import PlannedSamples
from recipes.edge.data.samples import PlannedSample, clip_settings
from recipes.edge.ranks.distributed import mistakes_in_words
from recipes.edge.weights.published import model_config
from recipes.preview import plan_dataset, refuse_dataset
from recipes.qwen2vl_7b import QWEN2VL_7B

BARS, WIDTH = 8, 40
"""Bars of the histogram, and characters of the longest."""

MOST_LINES = 5
"""Sizes, categories and reasons that are listed, the most frequent first."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to look at."""

    data: Annotated[str, tyro.conf.Positional]
    """A file, a folder, or a name on the hub, as --data-path of a recipe."""
    config: Path | None = None
    """YAML file of settings; those of the 7B recipe without it."""
    unusable: Path | None = None
    """File for the rows that cannot be used, one JSON object a line."""
    show: str | None = None
    """Id of a sample to draw."""
    output: Path = Path("sample.png")
    """File of the drawing, .png or .svg."""


def main() -> None:
    """Report on a dataset, and draw a sample if one is asked for."""
    options = tyro.cli(Options, args=given_words(), description=__doc__)
    config = QWEN2VL_7B
    with mistakes_in_words(has_ranks=False):
        if options.config is not None:
            config = load_config(options.config, config)
        config = replace(config, data_path=options.data)
        if options.unusable is not None:
            options.unusable.parent.mkdir(parents=True, exist_ok=True)
        if options.show is not None:
            options.output.parent.mkdir(parents=True, exist_ok=True)
        family = family_of(model_config(config.model_name_or_path))
        settings = clip_settings(config, family)
        with TemporaryDirectory() as folder:
            planned, bad, about = plan_dataset(config, settings, Path(folder))
            sys.stdout.write(f"{report(planned, bad)}\n{'':13}{about}\n")
            sys.stdout.write(f"{'verdict':13}{verdict(config, planned, bad)}\n")
            if options.unusable is not None:
                options.unusable.write_text(as_lines(bad))
                sys.stdout.write(f"{'named':13}{options.unusable}\n")
            if options.show is not None:
                sample = find_sample(planned, bad, options.show)
                draw_sample(sample, planned, options.output)
                sys.stdout.write(f"{'drawn':13}{options.output}\n")


def report(planned: PlannedSamples, bad: Sequence[BadSample]) -> str:
    """Say what a dataset holds, and what becomes of it under the settings.

    Args:
        planned: The samples that can be used.
        bad: The others.

    Returns:
        Lines of text.
    """
    lines = [("data", f"{len(planned):,} samples, {len(bad):,} unusable")]
    if len(planned):
        lines += _contents(planned)
    reasons = Counter(_kind_of(sample) for sample in bad)
    first = {_kind_of(sample): sample for sample in reversed(bad)}
    kinds = reasons.most_common()
    lines += [
        ("unusable", f"{count:,} like {first[kind].source}: {first[kind].reason}")
        for kind, count in kinds[:MOST_LINES]
    ]
    if others := [count for _, count in kinds[MOST_LINES:]]:
        words = "reason" if len(others) == 1 else "reasons"
        lines.append(("unusable", f"{sum(others):,} for {len(others)} other {words}"))
    return "\n".join(f"{name:13}{words}" for name, words in lines)


def verdict(config: Config, planned: PlannedSamples, bad: Sequence[BadSample]) -> str:
    """Say whether a run would begin with a dataset.

    Args:
        config: The settings of the run.
        planned: The samples that can be used.
        bad: The others.

    Returns:
        A line of text.
    """
    try:
        refuse_dataset(config, planned, bad)
    except ValueError as error:
        return f"a run would refuse these data: {error}"
    return "a run would take these data"


def find_sample(
    planned: PlannedSamples, bad: Sequence[BadSample], sample_id: str
) -> PlannedSample:
    """Give a sample by its id.

    Raises:
        ValueError: If no sample has that id, or it cannot be used.
    """
    ids = planned.index.sample_ids()
    for place, number in enumerate(planned.numbers):
        if ids[number] == sample_id:
            return planned[place]
    for sample in bad:
        if sample.sample_id == sample_id:
            raise ValueError(f"sample {sample_id!r} cannot be used: {sample.reason}")
    known = ", ".join(repr(each) for each in ids[:3])
    raise ValueError(f"no sample has the id {sample_id!r}; ids are like {known}")


def _contents(planned: PlannedSamples) -> list[tuple[str, str]]:
    """Describe samples that can be used."""
    sizes, categories, kinds = Counter[str](), Counter[str](), Counter[str]()
    seconds = list[float]()
    for sample in planned.samples():
        categories[sample.category or "none"] += 1
        kinds.update(clip.kind for clip in sample.clips)
        kinds["text alone"] += not sample.clips
        for clip in sample.clips:
            sizes[f"{clip.info.width} x {clip.info.height}"] += 1
            if clip.kind == "video":
                seconds.append(clip.info.length)
    schedules = [
        describe_schedule(clip.span.grid, clip.span.schedule)
        for clip in planned[0].clips
    ]
    capacity = planned.settings.capacity
    bins = best_fit_decreasing(planned.lengths, capacity)
    full = fill(planned.lengths, bins, capacity)
    lines = [
        ("shown", _most_common(kinds)),
        ("categories", _most_common(categories)),
        ("sizes", _most_common(sizes)),
        ("seconds", _spread(seconds, "{:.1f}")),
        ("tokens", f"{_spread(planned.lengths)}; {sum(planned.lengths):,} in all"),
        ("rows", f"{len(bins):,} of {capacity:,} tokens, {full:.1%} full"),
        ("first clip", ", ".join(schedules) or "none"),
    ]
    return lines + [("", bar) for bar in _histogram(planned.lengths)]


def _kind_of(sample: BadSample) -> str:
    """Give what a reason has in common with others: its words without names."""
    words = sample.reason.split()
    return " ".join(w for w in words if not any(c in w for c in "/.'\"0123456789"))


def _most_common(counts: Counter[str]) -> str:
    """List what there is most of."""
    named = [f"{name} {count:,}" for name, count in counts.most_common() if count]
    more = len(named) - MOST_LINES
    return ", ".join(named[:MOST_LINES]) + (f" and {more} more" if more > 0 else "")


def _spread(values: Iterable[float], form: str = "{:,.0f}") -> str:
    """Say where values lie."""
    known = sorted(values)
    if not known:
        return "none"
    least, middle, most = known[0], median(known), known[-1]
    words = [form.format(each) for each in (least, most, middle)]
    return f"{words[0]} to {words[1]}, median {words[2]}"


def _histogram(lengths: Sequence[int]) -> list[str]:
    """Draw how many samples have how many tokens."""
    least = min(lengths)
    step = (max(lengths) - least) // BARS + 1
    counts = Counter((length - least) // step for length in lengths)
    most = max(counts.values())
    return [
        f"{least + number * step:>7,} to {least + (number + 1) * step - 1:>7,} "
        f"{'#' * -(-counts[number] * WIDTH // most):{WIDTH}} {counts[number]:,}"
        for number in range(max(counts) + 1)
    ]


if __name__ == "__main__":
    main()
