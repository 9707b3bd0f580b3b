"""Hostile inputs of every family; ``nox -s fuzz`` runs all of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipes.fuzz.__main__ import complaint

ROOT = Path(__file__).parents[2]


def test_some_of_every_family() -> None:
    command = [sys.executable, "-m", "tests.recipes.fuzz", "--of-each-family", "3"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    *families, total = done.stdout.splitlines()
    assert len(families) > 30
    assert total.endswith(" cases, 0 wrong")


@pytest.mark.parametrize(
    ("verdict", "said", "expected"),
    [
        ("skipped", ["It is no video."], None),
        ("used", [], "used; it may be skipped"),
        ("hung", [], "hung; it may be skipped"),
        ("died", ["exit code -11"], "died; it may be skipped"),
        ("skipped", [], "without a reason"),
        ("skipped", ["Cannot allocate memory"], "out of memory"),
        ("skipped", ["a\x1b[2J"], "with an unreadable reason of 5 characters"),
        ("skipped", ["a" * 1001], "with an unreadable reason of 1001 characters"),
    ],
)
def test_what_is_wrong_is_said(
    verdict: str, said: list[str], expected: str | None
) -> None:
    assert complaint(["skipped"], verdict, said) == expected
