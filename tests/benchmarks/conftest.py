"""What all benchmarks share: the device, peaks of memory, one table of ratios.

``nox -s bench`` ends with the table; ``nox -s bench -- --results FOLDER`` writes it as
JSON too. Where there is a GPU, masks, pooling and losses are measured on it.
"""

import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import pytest
import torch

import fastslow

Timed = Callable[..., Any]
PeakBytes = Callable[[Callable[[], object]], int]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one benchmark found, times in seconds."""

    group: str
    way: dict[str, str]
    min: float
    median: float
    rounds: int
    extra_info: dict[str, Any]


MEASURED = pytest.StashKey[list[Measured]]()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Give the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def to_the_end(device: torch.device) -> Callable[[Timed], Timed]:
    """Let a function wait for the device, so that its time is that of its work."""

    def wrap(function: Timed) -> Timed:
        def run(*args: Any) -> Any:
            result = function(*args)
            torch.cuda.synchronize(device)
            return result

        return run

    return wrap if device.type == "cuda" else lambda function: function


@pytest.fixture(scope="session")
def peak_bytes(device: torch.device) -> PeakBytes:
    """Measure how many bytes a function holds at most beside what was there before."""

    def on_gpu(function: Callable[[], object]) -> int:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before

    def on_cpu(function: Callable[[], object]) -> int:
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
            function()
        events = profile.profiler.kineto_results.events()
        sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
        return max(accumulate(sizes), default=0)

    return on_gpu if device.type == "cuda" else on_cpu


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that says where results go."""
    parser.addoption(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="write the benchmarks as JSON here, named after the device",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Start without results."""
    config.stash[MEASURED] = []


def pytest_runtest_teardown(item: pytest.Function) -> None:
    """Keep what a benchmark has measured."""
    benchmark = item.funcargs.get("benchmark")
    if benchmark is None or benchmark.stats is None or benchmark.has_error:
        return
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    names = {key: getattr(v, "__name__", str(v)) for key, v in parameters.items()}
    measured = Measured(
        group=benchmark.group or item.originalname.removeprefix("test_"),
        way={"function": item.originalname.removeprefix("test_"), **names},
        min=benchmark.stats["min"],
        median=benchmark.stats["median"],
        rounds=benchmark.stats["rounds"],
        extra_info=dict(benchmark.extra_info),
    )
    item.config.stash[MEASURED].append(measured)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """End with the table, and write the file that was asked for."""
    results = summary(config.stash[MEASURED])
    if not results:
        return
    terminalreporter.section("ratios of the shortest times; the first way is ours")
    for line in table(results):
        terminalreporter.write_line(line)
    folder = config.getoption("results")
    if folder is not None:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        name = gpu.lower().replace(" ", "-") if gpu else "cpu"
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**machine(gpu), "benchmarks": results}, indent=1)
        (folder / f"{name}.json").write_text(text + "\n")


def machine(gpu: str | None) -> dict[str, Any]:
    """Say on what was measured, and when, but not whose machine it was."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "huge_pages": "malloc.hugetlb" in os.environ.get("GLIBC_TUNABLES", ""),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastslow": fastslow.__version__,
    }


def processor() -> str:
    """Give the model of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [
        line.partition(": ")[2] for line in lines if line.startswith("model name")
    ]
    return models[0] if models else platform.processor() or platform.machine()


def summary(measured: list[Measured]) -> list[dict[str, Any]]:
    """Group the benchmarks; name each way by what is its own in the group."""
    measured = sorted(measured, key=lambda m: m.group.partition(":")[0])
    return [
        {
            "group": group,
            "name": way_name(member, members),
            "min": rounded(member.min),
            "median": rounded(member.median),
            "rounds": member.rounds,
            "ratio": rounded(member.min / members[0].min),
            "extra_info": {k: rounded(v) for k, v in member.extra_info.items()},
        }
        for group in dict.fromkeys(m.group for m in measured)
        for members in [[m for m in measured if m.group == group]]
        for member in members
    ]


def rounded(value: Any) -> Any:
    """Keep four digits of a number that is not whole."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def way_name(member: Measured, members: list[Measured]) -> str:
    """Name a way by the parameters that differ in its group."""
    own = [
        value
        for key, value in member.way.items()
        if any(other.way.get(key) != value for other in members)
    ]
    return " ".join(own or [member.way["function"]]).replace("_", " ")


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """Write one line for each way, the workload above its ways."""
    width = max(len(result["name"]) for result in results)
    for group, members in groupby(results, key=lambda result: result["group"]):
        yield group
        for number, result in enumerate(members):
            extra = dict(result["extra_info"])
            target = extra.pop("target", "")
            ratio = f"{short(result['ratio'])}x" if number else "ours"
            numbers = "; ".join(f"{key} {value:,}" for key, value in extra.items())
            line = (
                f"  {result['name']:{width}}  {seconds(result['min']):>9}  {ratio:>8}"
                f"  {target:24}  {numbers}"
            )
            yield line.rstrip()


def short(value: float) -> str:
    """Write three digits, or all those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def seconds(time: float) -> str:
    """Write a time with its unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if time >= scale:
            return f"{short(time / scale)} {unit}"
    return f"{short(time / 1e-6)} us"
