"""Say whether two finished runs are the same, bit for bit.

    python recipes/reproduce.py runs/first runs/second

Compared are metrics, clocks aside, the last checkpoint with the optimizer's state, the
place in the data and the random states, and the exported weights with their
configuration. Paths may differ, and settings that a run may change. The exit status is
1 if anything differs. ``nox -s reproduce`` trains the tiny recipe twice and compares.
"""

import sys
from pathlib import Path

import tyro

from recipes.edge.ranks.distributed import mistakes_in_words
from recipes.edge.reports.reproduction import differences

SHOWN = 20
"""Differences that are named at most."""


def main(first: Path, second: Path) -> None:
    """Compare two runs.

    Args:
        first: Folder of a finished run.
        second: Folder of another.
    """
    with mistakes_in_words(has_ranks=False):
        found = differences(first, second)
    for line in found[:SHOWN]:
        sys.stdout.write(f"{line}\n")
    if found:
        sys.exit(f"{first} and {second} differ in {len(found)} places")
    sys.stdout.write(f"{first} and {second} are the same, bit for bit\n")


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.Positional,))
