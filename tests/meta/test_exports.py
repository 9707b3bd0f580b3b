"""What ``fastslow`` exports: all of it, in order, and documented."""

import inspect
from types import ModuleType

import pytest

import fastslow
import fastslow.plotting
import fastslow.qwen2_vl
import fastslow.testing

MODULES = [fastslow, fastslow.qwen2_vl]


def public_names(module: ModuleType) -> set[str]:
    """Give the names that a module has for others, its helpers' imports aside."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and not (
            inspect.isroutine(value) and not value.__module__.startswith("fastslow")
        )
    }


def own_docstring(value: object) -> str:
    """Give the docstring that someone wrote, not the one that a dataclass makes."""
    written = inspect.getdoc(value) or ""
    made = isinstance(value, type) and written.startswith(f"{value.__name__}(")
    return "" if made else written


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_is_the_public_names_in_order(module: ModuleType) -> None:
    def order(name: str) -> tuple[bool, bool, str]:
        return not name.isupper(), not name[0].isupper(), name

    assert module.__all__ == sorted(public_names(module), key=order)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_functions_and_classes_are_documented(module: ModuleType) -> None:
    values = {name: getattr(module, name) for name in module.__all__}
    documented = {
        name: bool(own_docstring(value))
        for name, value in values.items()
        if inspect.isfunction(value) or inspect.isclass(value)
    }
    assert documented
    assert [name for name, is_so in documented.items() if not is_so] == []


def test_every_public_function_has_an_example() -> None:
    exported = {
        f"{module.__name__}.{name}": getattr(module, name)
        for module in (*MODULES, fastslow.testing)
        for name in module.__all__
    }
    pictures = {
        f"fastslow.plotting.{name}": value
        for name, value in vars(fastslow.plotting).items()
        if not name.startswith("_")
        and inspect.isfunction(value)
        and value.__module__ == "fastslow.plotting"
    }
    functions = {
        name: function
        for name, function in (exported | pictures).items()
        if inspect.isfunction(function)
    }
    assert functions.keys() > pictures.keys() > set()
    assert [
        name for name, each in functions.items() if ">>> " not in (each.__doc__ or "")
    ] == []
