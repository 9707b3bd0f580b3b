"""A build of the pages fails on a public name without documentation, law or test."""

import subprocess
import sys
from pathlib import Path

EXTENSIONS = Path(__file__).parents[2] / "docs" / "_extensions"

CONF = f"""
import sys
sys.path[:0] = [{str(EXTENSIONS)!r}, ".."]
extensions = ["sphinx.ext.autodoc", "laws"]
laws_tests = {{"small": "tests"}}
html_theme = "basic"
"""
PAGE = """
Small
=====

.. automodule:: small
   :members:

.. law-tables::
"""
GOOD = '''
"""A library of one function."""

def double(number: int) -> int:
    """Double a number.

    Laws:
        halves: half of it is the number: ``double(n) / 2 == n``
        even: it is even
    """
    return 2 * number
'''
BAD = (
    GOOD.replace("even: it is even", "odd: it is odd")
    + '''

def lawless():
    """Do anything."""

def wordless():
    pass

class Wordless:
    """Have a method."""

    def method(self):
        pass

__all__ = ["Wordless", "double", "lawless", "wordless"]
'''
)
TESTS = """
import pytest
from hypothesis import example, given, settings, strategies as st
from small import double

settings.register_profile("ci", max_examples=70)
settings.load_profile("ci")

@given(st.integers())
@example(0)
@example(1)
def test_double__halves(number):
    assert double(number) / 2 == number

@pytest.mark.parametrize("number", [1, 2, 3])
def test_double__even(number):
    assert double(number) % 2 == 0
"""


def build(folder: Path, library: str) -> tuple[int, str, str]:
    """Give the exit status of a build, its warnings and the page."""
    (folder / "docs").mkdir()
    (folder / "tests").mkdir()
    (folder / "small.py").write_text(library)
    (folder / "tests" / "test_small.py").write_text(TESTS)
    (folder / "docs" / "conf.py").write_text(CONF)
    (folder / "docs" / "index.rst").write_text(PAGE)
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "docs", "out"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    page = folder / "out" / "index.html"
    return done.returncode, done.stderr, page.read_text() if page.is_file() else ""


def test_a_law_is_shown_with_its_test_and_examples(tmp_path: Path) -> None:
    status, warnings, page = build(tmp_path, GOOD)
    assert (status, warnings) == (0, "")
    line = TESTS.splitlines().index("@given(st.integers())") + 1
    assert f'href="_tests/test_small.html#line-{line}"' in page
    assert "70 drawn, 2 fixed" in page
    assert "3 fixed" in page
    source = (tmp_path / "out" / "_tests" / "test_small.html").read_text()
    assert f'id="line-{line}"' in source


def test_what_is_missing_fails_the_build(tmp_path: Path) -> None:
    status, warnings, _ = build(tmp_path, BAD)
    assert status != 0
    for missing in (
        "the law odd of small.double is no test",
        "small.lawless states no law",
        "small.wordless states no law",
        "small.wordless has no documentation",
        "small.Wordless.method has no documentation",
    ):
        assert missing in warnings, warnings
