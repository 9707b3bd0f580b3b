"""Every public function states its laws, and every law is a test.

Law ``round_trip`` of ``fastslow.ragged.pack_ragged`` is the function
``test_pack_ragged__round_trip`` of ``tests/laws/test_ragged.py``. Those of
``fastslow.qwen2_vl`` stand in ``tests/models``, whose files are sorted by the models
that they need.
"""

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import fastslow
import fastslow.plotting
import fastslow.qwen2_vl

TESTS = Path(__file__).parents[1]


def exported_functions() -> list[Callable[..., object]]:
    """Give the functions of ``fastslow``, and of the rooms that it does not import."""
    core = [getattr(fastslow, name) for name in fastslow.__all__]
    pictures = [
        value
        for name, value in vars(fastslow.plotting).items()
        if not name.startswith("_") and value not in core
    ]
    models = [getattr(fastslow.qwen2_vl, name) for name in fastslow.qwen2_vl.__all__]
    return [
        value
        for value in core + pictures + models
        if inspect.isfunction(value) and value.__module__.startswith("fastslow")
    ]


def read_laws(docstring: str) -> list[str]:
    """Give the names of the laws of a docstring.

    Args:
        docstring: In Google form. A law is a line ``name: statement`` of the section
            ``Laws:``; lines that are indented further go on with the statement.

    Returns:
        The names in order; none without the section.

    Raises:
        ValueError: If a line of the section is neither, or a name comes twice.
    """
    names: list[str] = []
    _, _, section = inspect.cleandoc(docstring).partition("\nLaws:\n")
    for line in section.splitlines():
        if not line.startswith("    "):
            break
        law = re.fullmatch(r"    ([a-z]\w*): \S.*", line)
        if law and law[1] not in names:
            names.append(law[1])
        elif law or not (names and line.startswith(" " * 8)):
            raise ValueError(f"{line.strip()!r} must read 'name: statement', once")
    return names


def law_tests() -> set[tuple[str, str]]:
    """Give the place and the name of each test of a law."""
    return {
        (place_of(file), node.name)
        for folder in ("laws", "models")
        for file in (TESTS / folder).glob("test_*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and re.match("test_.*__", node.name)
    }


def place_of(file: Path) -> str:
    """Name the file of a test of the core, the folder of a test of a model."""
    return file.parent.name if file.parent.name == "models" else file.name


def stated_tests(function: Callable[..., object]) -> set[tuple[str, str]]:
    """Give the place and the name of each test that a function's laws call for."""
    *package, module = function.__module__.split(".")
    place = f"test_{module.lstrip('_')}.py" if package == ["fastslow"] else "models"
    laws = read_laws(function.__doc__ or "")
    return {(place, f"test_{function.__name__}__{law}") for law in laws}


@pytest.mark.parametrize("function", exported_functions(), ids=lambda f: f.__name__)
def test_every_function_states_laws_that_are_tests(
    function: Callable[..., object],
) -> None:
    stated = stated_tests(function)
    assert stated, f"{function.__name__} has no section 'Laws:'"
    assert stated - law_tests() == set()


def test_every_test_of_a_law_has_its_law() -> None:
    stated = set().union(*map(stated_tests, exported_functions()))
    assert law_tests() - stated == set()


def test_laws_are_read_from_their_section() -> None:
    docstring = """Add.

    Laws:
        commutes: a + b = b + a
        unit: a + 0 = a, on either
            side: left and right

    Example:
        >>> add(1, 2)
    """
    assert read_laws(docstring) == ["commutes", "unit"]
    assert read_laws("Add.") == []


@pytest.mark.parametrize(
    "section",
    ["        commutes", "        it commutes: always", "        a: b\n        a: c"],
)
def test_a_law_has_a_name_and_a_statement(section: str) -> None:
    with pytest.raises(ValueError, match="must read 'name: statement', once"):
        read_laws(f"Add.\n\n    Laws:\n{section}\n")
