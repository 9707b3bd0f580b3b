"""Strategies, references and checks for testing code that is built on ``fastslow``.

``check_mask`` and ``check_schedule`` hold a mask or a schedule of your own to the laws
that those of the library obey. ``fastslow.testing.strategies`` draws random grids,
schedules, samples and rows with Hypothesis. ``fastslow.testing.reference`` says once
more, in plain loops, what the library computes.
"""

from fastslow.testing.checks import MaskLaw, ScheduleLaw, check_mask, check_schedule

__all__ = ["MaskLaw", "ScheduleLaw", "check_mask", "check_schedule"]
