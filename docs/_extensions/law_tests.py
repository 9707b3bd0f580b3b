"""The tests of laws as pytest collects them: where they stand, how often they run.

``collect_law_tests`` asks pytest in a process of its own, under the profile that CI
uses. There this module is loaded as a plugin, which writes the answer.
"""

import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

_LAW_TEST = re.compile(r"\ndef test_\w+?__\w+\(")


@dataclass(frozen=True, kw_only=True)
class LawTest:
    """One test of a law.

    Attributes:
        file: Where it stands, relative to the root of the repository.
        line: Its first line there, from 1.
        drawn: Examples that Hypothesis draws at most, over all cases of the test.
        fixed: Examples that the test itself names.
    """

    file: str
    line: int
    drawn: int
    fixed: int


def collect_law_tests(root: Path, folders: list[str]) -> dict[str, LawTest]:
    """Give the tests of laws in some folders by their names.

    Args:
        root: Of the repository, where pytest is configured.
        folders: Relative to it.

    Returns:
        Every test called ``test_<function>__<law>``; none where there is none.

    Raises:
        RuntimeError: If pytest cannot collect the files.
    """
    files = [
        str(file)
        for folder in folders
        for file in sorted((root / folder).glob("test_*.py"))
        if _LAW_TEST.search(file.read_text())
    ]
    if not files:
        return {}
    with TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q"]
        options = ["-o", "addopts=", "--import-mode=importlib"]
        plugins = ["-p", "no:cacheprovider", "-p", __name__, f"--law-tests={answer}"]
        here = str(Path(__file__).parent)
        paths = os.pathsep.join((here, os.environ.get("PYTHONPATH", "")))
        done = subprocess.run(
            [*command, *options, *plugins, *files],
            cwd=root,
            env=os.environ | {"HYPOTHESIS_PROFILE": "ci", "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"pytest collects no laws: {done.stdout}{done.stderr}")
        found = json.loads(answer.read_text())
    return {name: LawTest(**test) for name, test in found.items()}


def pytest_addoption(parser: "pytest.Parser") -> None:
    """Take the name of the file to write."""
    parser.addoption("--law-tests")


def pytest_collection_finish(session: "pytest.Session") -> None:
    """Write where each test stands and how many examples its cases run."""
    found: dict[str, dict[str, Any]] = {}
    for item in session.items:
        name = getattr(item, "originalname", "")
        if _LAW_TEST.match(f"\ndef {name}("):
            test = _read_test(item, session.config.rootpath)
            known = found.setdefault(name, asdict(test) | {"drawn": 0, "fixed": 0})
            known["drawn"] += test.drawn
            known["fixed"] += test.fixed
    answer = Path(session.config.getoption("--law-tests"))
    answer.write_text(json.dumps(found))


def _read_test(item: Any, root: Path) -> LawTest:
    """Read one case of a test."""
    function = item.function
    drawn, fixed = 0, 1
    if getattr(function, "is_hypothesis_test", False):
        # The name under which Hypothesis's own plugin for pytest reads them.
        drawn = function._hypothesis_internal_use_settings.max_examples
        fixed = len(getattr(function, "hypothesis_explicit_examples", ()))
        function = function.hypothesis.inner_test
    return LawTest(
        file=str(item.path.relative_to(root)),
        line=inspect.getsourcelines(function)[1],
        drawn=drawn,
        fixed=fixed,
    )
