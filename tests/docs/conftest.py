"""One browser for all tests of pages."""

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSER = runpy.run_path(str(Path(__file__).with_name("browser.py")))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start a browser."""
    if BROWSER["CHROMIUM"] is None:
        pytest.skip("no Chromium here, so pages are not driven")
    with BROWSER["Page"](tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="session")
def contrast() -> Any:
    """Give the function that compares two colours as people see them."""
    return BROWSER["contrast"]
