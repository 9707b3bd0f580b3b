"""What to change where a step does not fit the GPU."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from recipes.config import Config, with_settings
from recipes.edge.data.loader import ROW_MULTIPLE, padded_length
from recipes.edge.estimates.forecast import Plan, Samples, fits, step_memory
from recipes.edge.estimates.memory import Memory
from recipes.settings.values import by_dotted_name

_Change = Mapping[str, Any]
"""Settings that are changed together, as a YAML file names them."""


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


def _memory_that_fits(
    plan: Plan, changes: Sequence[_Change], samples: Samples
) -> Memory | None:
    """Tell what a step takes after some changes; None if it does not fit."""
    plan = _changed(plan, changes)
    memory = step_memory(plan, samples)
    return memory if fits(plan, memory) else None


def _changed(plan: Plan, changes: Sequence[_Change]) -> Plan:
    """Make changes in turn; a later one overrides an earlier one."""
    for change in changes:
        plan = replace(plan, config=with_settings(plan.config, change))
    return plan


def _flags(changes: Sequence[_Change]) -> str:
    """Write changes as a command line does; a later one overrides an earlier one."""
    settings = dict(pair for change in changes for pair in by_dotted_name(change))
    return " ".join(
        f"--{name.replace('_', '-')}" + (f" {value}" if value is not True else "")
        for name, value in settings.items()
    )


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
