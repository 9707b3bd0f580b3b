"""Modules and functions that are past these sizes ask to be split."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "fastslow", "recipes", "tests")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
CORE = [
    file
    for file in FILES
    if file.is_relative_to(ROOT / "fastslow")
    and not file.is_relative_to(ROOT / "fastslow" / "testing")
]
CODE = [file for file in FILES if file.relative_to(ROOT).parts[0] != "tests"]

MODULE_LINES = 350
BODY_LINES = 40
FILE_LINES = 1000


def long_functions(source: str, limit: int) -> Iterator[tuple[str, int]]:
    """Find functions whose code, docstring aside, has more lines than ``limit``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            has_docstring = ast.get_docstring(node) is not None
            body = node.body[1:] if has_docstring else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > limit:
                yield node.name, lines


def _name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def _num_lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def test_there_are_files() -> None:
    assert ROOT / "fastslow" / "masks.py" in CORE
    assert {file.relative_to(ROOT).parts[0] for file in FILES} == set(FOLDERS)


def test_core_modules_are_short() -> None:
    sizes = {_name(file): _num_lines(file) for file in CORE}
    assert {name: size for name, size in sizes.items() if size > MODULE_LINES} == {}


def test_no_file_is_huge() -> None:
    sizes = {_name(file): _num_lines(file) for file in FILES}
    assert {name: size for name, size in sizes.items() if size >= FILE_LINES} == {}


def test_functions_are_short() -> None:
    found = {_name(f): dict(long_functions(f.read_text(), BODY_LINES)) for f in CODE}
    assert {name: functions for name, functions in found.items() if functions} == {}


@pytest.mark.parametrize(("lines", "is_long"), [(3, False), (4, True)])
def test_a_long_function_is_found(lines: int, is_long: bool) -> None:
    body = "    x = 1\n" * lines
    source = f'class A:\n  def f():\n    """One.\n\n    Two.\n    """\n{body}'
    assert dict(long_functions(source, 3)) == ({"f": lines} if is_long else {})
