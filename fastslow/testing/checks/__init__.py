"""Laws that masks and schedules of your own are held to."""

from fastslow.testing.checks.masks import MaskLaw, check_mask
from fastslow.testing.checks.schedules import ScheduleLaw, check_schedule

__all__ = ["MaskLaw", "ScheduleLaw", "check_mask", "check_schedule"]
