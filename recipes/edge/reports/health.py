"""Rules over the numbers of a run: what looks wrong, and what to do about it.

Each rule looks at one step, and speaks when what it looks for has lasted for some steps
in a row. It is a fold over the lines of ``metrics.jsonl``, so a resumed run that reads
them again says what an undisturbed one would have said, but of ranks that wait: it may
have others.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

Numbers = Mapping[str, float | int | None]
"""The numbers of a step by name; None, as in JSON, for what is not finite."""

SPIKE = 2.5
"""Times the largest loss before that a spike has. Packed rows differ: over the tiny
recipe's 320 steps a loss was at most 1.8 times the largest of 50 before it. Losses of
runs that blow up rise several times over."""

SPIKE_STEPS = 50
"""Steps that a loss is compared with, after those of ``RAMP_STEPS``."""

RAMP_STEPS = 5
"""Steps just before that a loss is not compared with: a spike may build up in some."""

FIRST_LOSSES = 5
"""Losses, the first ones, whose largest a run that learns stays near or below."""

SPREAD = 0.05
"""Share of the targets' spread under which predictions are all but one vector."""

WAIT_SHARE, WAIT_TIMES = 0.2, 3.0
"""Share of the step that a rank waits, and times the mean of the others; less does not
matter, or is how data differ."""

REPEAT = 200
"""Steps after which a warning is given again, as long as its reason lasts."""


@dataclass(frozen=True, kw_only=True)
class Warned:
    """What a rule says.

    Attributes:
        rule: Name of the rule.
        message: What was seen, and what to do.
    """

    rule: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Health:
    """What the rules remember.

    Attributes:
        num_ranks: Ranks of the run.
        losses: The last losses that were finite, oldest first.
        first_losses: The first losses that were finite.
        streaks: What each rule has seen, and in how many steps in a row; rules that
            saw nothing in the last step are not in it.
    """

    num_ranks: int
    losses: tuple[float, ...] = ()
    first_losses: tuple[float, ...] = ()
    streaks: Mapping[str, tuple[str, int]] = field(
        default_factory=lambda: MappingProxyType({})
    )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule.

    Attributes:
        sees: What is seen in a step in few words, which do not change while it is the
            same; None if nothing is.
        lasts: Steps in a row after which the rule speaks.
        says: What was seen, with the numbers of the step.
        advice: What to do.
    """

    sees: Callable[[Health, Numbers], str | None]
    lasts: int
    says: Callable[[Health, Numbers], str]
    advice: str


def examine(health: Health, numbers: Numbers) -> tuple[Health, list[Warned]]:
    """Hold the numbers of the next step against all rules.

    Args:
        health: What the rules remember of the steps before.
        numbers: Those of the step; a rule whose numbers are not there sees nothing.

    Returns:
        What the rules remember now, and what they say.

    Example:
        >>> health, said = examine(Health(num_ranks=1), {"gradient_norm": math.inf})
        >>> said[0].rule
        'gradients_not_finite'
        >>> examine(health, {"gradient_norm": math.inf})[1]  # it was said just now
        []
    """
    streaks, said = dict[str, tuple[str, int]](), list[Warned]()
    for name, rule in RULES.items():
        seen = rule.sees(health, numbers)
        if seen is None:
            continue
        before, steps = health.streaks.get(name, (seen, 0))
        steps = steps + 1 if before == seen else 1
        streaks[name] = seen, steps
        if steps >= rule.lasts and not (steps - rule.lasts) % REPEAT:
            message = f"{rule.says(health, numbers)}; {rule.advice}"
            said.append(Warned(rule=name, message=message))
    losses, first = health.losses, health.first_losses
    if math.isfinite(loss := _number(numbers, "loss")):
        losses = (*losses, loss)[-SPIKE_STEPS - RAMP_STEPS :]
        first = (*first, loss)[:FIRST_LOSSES]
    now = replace(health, losses=losses, first_losses=first, streaks=streaks)
    return now, said


def _number(numbers: Numbers, name: str) -> float:
    """Give a number; nan where there is none, or one that is not finite."""
    value = numbers.get(name)
    return math.nan if value is None or not math.isfinite(value) else float(value)


def _largest(losses: tuple[float, ...]) -> float:
    """Give the largest loss, with which another may be compared.

    It is infinite where there is none, or all are 0, as those without labels are.
    """
    return max(losses, default=0) or math.inf


def _usual(health: Health) -> float:
    """Give the largest loss that is usual; infinity before enough were seen."""
    known = len(health.losses) >= SPIKE_STEPS + RAMP_STEPS
    return _largest(health.losses[:-RAMP_STEPS] if known else ())


def _sees_spike(health: Health, numbers: Numbers) -> str | None:
    loss = _number(numbers, "loss")
    return "a spike" if loss > SPIKE * _usual(health) else None


def _says_spike(health: Health, numbers: Numbers) -> str:
    loss, usual = _number(numbers, "loss"), _usual(health)
    return (
        f"the loss is {loss:.4g}, {loss / usual:.1f} times the largest of "
        f"{SPIKE_STEPS} steps before"
    )


def _begun(health: Health) -> float:
    """Give the largest of the first losses; infinity before enough were seen."""
    known = len(health.first_losses) == FIRST_LOSSES
    return _largest(health.first_losses if known else ())


def _sees_rise(health: Health, numbers: Numbers) -> str | None:
    loss = _number(numbers, "loss")
    return "above" if loss > SPIKE * _begun(health) else None


def _says_rise(health: Health, numbers: Numbers) -> str:
    loss, begun = _number(numbers, "loss"), _begun(health)
    return (
        f"the loss is {loss:.4g}, {loss / begun:.1f} times the largest of the run's "
        f"first {FIRST_LOSSES}"
    )


def _sees_gradients(health: Health, numbers: Numbers) -> str | None:
    is_there = "gradient_norm" in numbers
    norm = _number(numbers, "gradient_norm")
    return "not finite" if is_there and not math.isfinite(norm) else None


def _says_gradients(health: Health, numbers: Numbers) -> str:
    skipped = numbers.get("skipped_steps", 1)
    return f"gradients are not finite, so the step was not taken; {skipped} so far"


def _sees_no_skill(health: Health, numbers: Numbers) -> str | None:
    return "no skill" if _number(numbers, "skill") <= 0 else None


def _says_no_skill(health: Health, numbers: Numbers) -> str:
    lasted = health.streaks.get("no_skill", ("", 0))[1] + 1
    return (
        f"in {lasted} steps in a row the next-frame head was no better than a copy of "
        f"the frame (skill is {_number(numbers, 'skill'):.3f})"
    )


def _sees_collapse(health: Health, numbers: Numbers) -> str | None:
    return "collapsed" if _number(numbers, "spread") < SPREAD else None


def _says_collapse(health: Health, numbers: Numbers) -> str:
    return (
        "the next-frame head predicts nearly the same for every token: its predictions "
        f"spread {_number(numbers, 'spread'):.3f} times as far as their targets"
    )


def _others_wait(health: Health, numbers: Numbers) -> float:
    """Give the mean share of the step that all ranks but one wait."""
    longest = _number(numbers, "longest_data_wait")
    total = health.num_ranks * _number(numbers, "data_wait")
    return (total - longest) / (health.num_ranks - 1)


def _sees_waiting(health: Health, numbers: Numbers) -> str | None:
    longest = _number(numbers, "longest_data_wait")
    if health.num_ranks == 1 or not longest > WAIT_SHARE:
        return None
    if not longest > WAIT_TIMES * _others_wait(health, numbers):
        return None
    return f"rank {numbers['waiting_rank']}"


def _says_waiting(health: Health, numbers: Numbers) -> str:
    longest = _number(numbers, "longest_data_wait")
    return (
        f"rank {numbers['waiting_rank']} waits for its rows in {longest:.0%} of the "
        f"step, the others in {_others_wait(health, numbers):.0%}, and all wait for it"
    )


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "loss_spike": Rule(
            sees=_sees_spike,
            lasts=1,
            says=_says_spike,
            advice="where it does not fall back, go on from the checkpoint before with "
            "a smaller learning_rate or max_grad_norm or a longer warm-up, and look at "
            "the samples of this step",
        ),
        "loss_above_start": Rule(
            sees=_sees_rise,
            lasts=10,
            says=_says_rise,
            advice="unless later samples are that much harder, begin anew, or go on "
            "from a checkpoint before the rise, with a smaller learning_rate or "
            "max_grad_norm or a longer warm-up",
        ),
        "gradients_not_finite": Rule(
            sees=_sees_gradients,
            lasts=1,
            says=_says_gradients,
            advice="one now and then does no harm; where they come again, lower the "
            "learning_rate, or look for the sample that causes them",
        ),
        # A head of random weights begins far below 0; that of the tiny recipe, at
        # 20 steps of warm-up, takes 70 steps to be better than a copy.
        "no_skill": Rule(
            sees=_sees_no_skill,
            lasts=200,
            says=_says_no_skill,
            advice="after the warm-up it should be: raise the learning_rate, look "
            "whether the clips move at all, or begin a new run from model-N with a "
            "larger loss_weight",
        ),
        "collapsed_predictions": Rule(
            sees=_sees_collapse,
            lasts=50,
            says=_says_collapse,
            advice="lower the learning_rate, or begin a new run from model-N with a "
            "larger loss_weight, and see whether rows hold clips that differ; a skill "
            "above 0 then shows that a constant beats a copy, not that motion is "
            "predicted",
        ),
        # Rows of some steps are longer than those of others; a rank that is the
        # slowest by far in twenty steps in a row is so by itself.
        "waiting_rank": Rule(
            sees=_sees_waiting,
            lasts=20,
            says=_says_waiting,
            advice="look at the disk, the network and the processes of its machine, or "
            "raise dataloader_num_workers",
        ),
    }
)
"""All rules by name, in the order in which they speak."""
