"""An ablation in plain values: which runs a grid asks for, and what they add up to."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from recipes.config import NESTED, Config, with_settings
from recipes.edge.reports.metrics import read_metrics
from recipes.qwen2vl_2b import QWEN2VL_2B
from recipes.qwen2vl_7b import QWEN2VL_7B
from recipes.qwen2vl_72b import QWEN2VL_72B
from recipes.qwen2vl_tiny import TINY
from recipes.settings.mappings import check_known, check_mapping, settings_as_json
from recipes.settings.values import by_dotted_name, convert, nearest
from recipes.unread import unread_settings

PRESETS = {"tiny": TINY, "2b": QWEN2VL_2B, "7b": QWEN2VL_7B, "72b": QWEN2VL_72B}
"""Settings of each recipe, by the name that ``base`` calls it."""

LAST_SHARE = 0.1
"""Share of a run's steps, at its end, over which losses are averaged."""


LOSSES = ("loss", "language_loss", "autoregressive_loss", "skill")
"""What is averaged over them. One that is null where the loss is not had nothing to be
computed of in that step; a run whose loss is null has diverged."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One point of an axis.

    Attributes:
        axis: Name of the axis.
        label: What it changes.
        is_base: Whether it changes nothing.
        configs: Settings of its runs, one for each seed.
    """

    axis: str
    label: str
    is_base: bool
    configs: tuple[Config, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run came to. What it did not measure is None.

    Attributes:
        loss: What was minimised, over the last steps, as all losses; there is none
            where it was not finite in one of them.
        language_loss: Cross entropy for each trained token.
        autoregressive_loss: The next-frame loss for each pair of frames.
        skill: How far below the loss of copying that is.
        held_out_language_loss: Cross entropy for each token of the held-out answers.
        accuracy: Share of the held-out questions that were answered.
        questions: How many were asked.
        chance: Share that the most common answer would have answered.
        tokens_per_clip: Video tokens that are left of a clip.
        tokens_per_second: Of each rank, median over the steps.
        frames_per_second: Raw frames, in the same way.
    """

    loss: float | None
    language_loss: float | None
    autoregressive_loss: float | None
    skill: float | None
    held_out_language_loss: float | None
    accuracy: float | None
    questions: int | None
    chance: float | None
    tokens_per_clip: float | None
    tokens_per_second: float | None
    frames_per_second: float | None


def plan_ablation(settings: Mapping[str, Any], output_dir: Path) -> list[Variant]:
    """Read which runs are asked for.

    Args:
        settings: ``base``, the name of a recipe or its settings with a ``preset``;
            ``grid``, a list of axes, each a ``name`` and either one setting with the
            list of its values or ``variants``, a list of settings; and ``seeds``.
        output_dir: Folder of the runs, each in one of its own. Equal settings are the
            same run, whatever axis they stand on.

    Returns:
        The variants, axis by axis.

    Raises:
        ValueError: If a key is unknown or missing, settings break a rule, or an axis is
            over one that the run does not read.
    """
    known = ("base", "grid", "seeds")
    check_known(settings, known)
    for name in known:
        if name not in settings:
            raise ValueError(f"{name} is missing; an ablation has {', '.join(known)}")
    seeds = _whole_list("seeds", settings["seeds"])
    if len({convert("seeds", seed, int) for seed in seeds}) < len(seeds):
        raise ValueError(f"seeds is {seeds!r}; each stands once")
    base = _base(settings["base"])
    variants = []
    for number, axis in enumerate(_whole_list("grid", settings["grid"])):
        name, points = _axis(f"grid[{number}]", axis)
        for point in points:
            config = with_settings(base, point)
            _refuse_unread(f"grid[{number}]", point, config)
            variants.append(
                Variant(
                    axis=name,
                    label=", ".join(f"{k} {_text(v)}" for k, v in point.items()),
                    is_base=config == base,
                    configs=tuple(
                        _placed(config, base, seed, output_dir) for seed in seeds
                    ),
                )
            )
    return variants


def result_of(output_dir: Path) -> Result:
    """Sum up a run from its ``metrics.jsonl``.

    Args:
        output_dir: Folder of a finished run.

    Returns:
        Its result.

    Raises:
        ValueError: If a line of the file is none of a run.
    """
    rows = read_metrics(output_dir / "metrics.jsonl")
    steps = [row for row in rows if "event" not in row]
    asked: dict[str, Any] = next(
        (row for row in reversed(rows) if row.get("event") == "evaluation"), {}
    )
    last = steps[-max(1, round(LAST_SHARE * len(steps))) :]
    ended_well = all(row.get("loss") is not None for row in last)

    def mean(name: str, of: Sequence[Mapping[str, Any]]) -> float | None:
        values = [row[name] for row in of if row.get(name) is not None]
        return fmean(values) if values else None

    def typical(name: str) -> float | None:
        values = [row[name] for row in steps if row.get(name) is not None]
        return median(values) if values else None

    return Result(
        **{name: mean(name, last) if ended_well else None for name in LOSSES},
        held_out_language_loss=asked.get("language_loss"),
        accuracy=asked.get("accuracy"),
        questions=asked.get("questions"),
        chance=asked.get("chance"),
        tokens_per_clip=mean("tokens_per_clip", steps),
        tokens_per_second=typical("tokens_per_second"),
        frames_per_second=typical("frames_per_second"),
    )


def summarise(
    variants: Sequence[Variant], results: Mapping[Path, Result]
) -> list[dict[str, Any]]:
    """Put the results of the seeds of each variant together.

    Args:
        variants: The variants.
        results: Results by the folder of the run, of those that are finished.

    Returns:
        For each variant its axis, label and seeds, and for each number of ``Result``
        its ``mean`` (None where a run has none), ``deviation`` (of a sample; None of
        one run) and ``values``.
    """
    rows = []
    for variant in variants:
        done = [each for each in variant.configs if each.output_dir in results]
        found = [asdict(results[each.output_dir]) for each in done]
        numbers = {}
        for name in Result.__dataclass_fields__:
            values = [each[name] for each in found if each[name] is not None]
            is_whole = bool(values) and len(values) == len(found)
            numbers[name] = {
                "mean": fmean(values) if is_whole else None,
                "deviation": stdev(values) if len(values) > 1 else None,
                "values": values,
            }
        rows.append(
            {
                "axis": variant.axis,
                "variant": variant.label,
                "is_base": variant.is_base,
                "seeds": [each.seed for each in done],
                "missing": len(variant.configs) - len(done),
                "runs": [each.output_dir.name for each in done],
                **numbers,
            }
        )
    return rows


COLUMNS = (
    ("chance", "chance", "{:.3f}"),
    ("questions", "questions", "{:g}"),
    ("held-out language loss", "held_out_language_loss", "{:.4f}"),
    ("loss", "loss", "{:.3f}"),
    ("language loss", "language_loss", "{:.4f}"),
    ("next-frame loss", "autoregressive_loss", "{:.4f}"),
    ("skill", "skill", "{:.3f}"),
    ("tokens per clip", "tokens_per_clip", "{:.1f}"),
    ("tokens/s", "tokens_per_second", "{:.0f}"),
    ("raw frames/s", "frames_per_second", "{:.0f}"),
)
"""Heading, number and form of each column behind that of the accuracy."""


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a summary as a table.

    Args:
        rows: What ``summarise`` gave.

    Returns:
        Markdown: means over seeds; the accuracy with its lowest and its highest.
    """
    heads = ["", "variant", "seeds", "held-out accuracy", *(c[0] for c in COLUMNS)]
    lines = [heads, ["---"] * len(heads)]
    axis = None
    for row in rows:
        accuracy = row["accuracy"]["values"]
        spread = "-"
        if row["accuracy"]["mean"] is not None:
            least, most = min(accuracy), max(accuracy)
            spread = f"{row['accuracy']['mean']:.3f} ({least:.3f} to {most:.3f})"
        lines.append(
            [
                "" if row["axis"] == axis else f"**{row['axis']}**",
                f"{row['variant']}{' (base)' if row['is_base'] else ''}",
                str(len(row["seeds"]))
                + (f", {row['missing']} missing" * bool(row["missing"])),
                spread,
                *(_cell(row[name]["mean"], form) for _, name, form in COLUMNS),
            ]
        )
        axis = row["axis"]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def differences(
    results: Mapping[str, Result], starts: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Say what differs between runs whose numbers stand side by side.

    Args:
        results: What each run came to, by the name of its folder.
        starts: The last start of each, with dotted names, see ``run.json``.

    Returns:
        A sentence for the questions that were asked, for the commit, and for each
        package whose version differs; nothing where all runs agree.
    """
    code = {
        name: None
        for start in starts.values()
        for name in start
        if name.startswith(("git.", "versions."))
    }
    said = [
        _spread(
            "The runs were not asked as many held-out questions, and accuracies over "
            "other questions do not compare",
            {run: result.questions for run, result in results.items()},
        ),
        *(
            _spread(
                f"`{name}` of their last starts differs",
                {run: start.get(name) for run, start in starts.items()},
            )
            for name in code
        ),
    ]
    return [each for each in said if each]


def _spread(words: str, values: Mapping[str, Any]) -> str:
    """Say which runs have which value; nothing where all have the same."""
    runs = dict[str, list[str]]()
    for run, value in values.items():
        text = "none" if value is None else _text(value)
        runs.setdefault(text, []).append(f"`{run}`")
    if len(runs) < 2:
        return ""
    usual = max(runs, key=lambda text: len(runs[text]))
    others = (f"{t} in {', '.join(names)}" for t, names in runs.items() if t != usual)
    return f"{words}: {'; '.join(others)}; {usual} in all others."


def _base(base: Any) -> Config:
    """Read what every run has in common."""
    settings = (
        {"preset": base} if isinstance(base, str) else check_mapping("base", base)
    )
    name = convert("preset", settings.pop("preset", "tiny"), str)
    if name not in PRESETS:
        raise ValueError(
            f"preset is {name!r}; the nearest known one is {nearest(name, PRESETS)!r}"
        )
    _refuse_own("base", settings)
    return with_settings(PRESETS[name], settings)


def _axis(where: str, axis: Any) -> tuple[str, list[dict[str, Any]]]:
    """Read an axis: its name, and the settings of each of its points."""
    content = check_mapping(where, axis)
    name = convert(f"{where}.name", content.pop("name", None), str)
    if len(content) != 1:
        raise ValueError(
            f"{where} has {', '.join(content) or 'nothing'} beside its name; it takes "
            "one setting with a list of values, or variants"
        )
    ((key, values),) = content.items()
    values = _whole_list(f"{where}.{key}", values)
    if key == "variants":
        points = [check_mapping(f"{where}.variants", value) for value in values]
    else:
        points = [{key: value} for value in values]
    for point in points:
        _refuse_own(where, point)
    return name, points


def _refuse_own(where: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that are the ablation's own."""
    for own in ("seed", "output_dir", "dry_run"):
        if own in settings:
            raise ValueError(f"{where} names {own}; the ablation sets it for every run")


def _refuse_unread(where: str, point: Mapping[str, Any], config: Config) -> None:
    """Refuse settings that the run does not read."""
    named = dict(by_dotted_name({**point, **point.get(NESTED, {})}))
    unread = unread_settings(config)
    for name in named:
        if name in unread:
            raise ValueError(
                f"{where} names {name} but {unread[name]}; an axis is over what its "
                "runs read"
            )


def _placed(config: Config, base: Config, seed: int, output_dir: Path) -> Config:
    """Give a run its seed, and a folder whose name says what differs from the base."""
    before = settings_as_json(base)
    changes = {
        name: value
        for name, value in settings_as_json(config).items()
        if value != before[name]
    }
    plain = ",".join(f"{name}={_text(value)}" for name, value in changes.items())
    name = re.sub(r"[^\w.,=-]+", "_", plain, flags=re.ASCII)[:100] or "base"
    if plain and name != plain:
        name = f"{name}-{sha256(plain.encode()).hexdigest()[:8]}"
    return replace(config, seed=seed, output_dir=output_dir / f"{name},seed={seed}")


def _whole_list(name: str, value: Any) -> list[Any]:
    """Refuse what is no list with something in it."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is {value!r}; it must be a list, not empty")
    return value


def _text(value: Any) -> str:
    """Write a value as YAML and JSON do."""
    return value if isinstance(value, str) else json.dumps(value)


def _cell(value: float | None, form: str) -> str:
    """Write a number, or that there is none."""
    return "-" if value is None else form.format(value)
