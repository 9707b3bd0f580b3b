"""Strategies and references for testing code that is built on ``fastslow``.

``fastslow.testing.strategies`` draws random grids, schedules, samples and rows with
Hypothesis. ``fastslow.testing.reference`` says once more, in plain loops, what the
library computes.
"""
