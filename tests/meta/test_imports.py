"""What each room may import, and what importing the library brings along."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes import edge

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "fastslow").rglob("*.py"))
EDGE = ROOT / "recipes" / "edge"
EDGE_FILES = sorted(set(EDGE.rglob("*.py")) - {EDGE / "__init__.py"})
SETTINGS = ROOT / "recipes" / "settings"
SETTINGS_FILES = [ROOT / "recipes" / "config.py", *sorted(SETTINGS.rglob("*.py"))]

LIBRARIES = {"einops", "jaxtyping", "torch"}
EFFECTS = {
    "asyncio",
    "ctypes",
    "http",
    "importlib",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "pickle",
    "random",
    "secrets",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "torch.distributed",
    "torch.multiprocessing",
    "urllib",
}
"""Files, network, processes, clocks, logs and global random state: for recipes."""

SHARED = {
    f"fastslow.{name}"
    for name in ("_fits", "_once", "_plans", "_runs", "_shapes", "_typing")
}
INTEGERS = SHARED | {
    f"fastslow.{name}"
    for name in ("balancing", "buckets", "grids", "online_packing", "packing", "ragged")
}
SCHEDULES = INTEGERS | {
    f"fastslow.{name}"
    for name in (
        "budgets",
        "content",
        "frames",
        "schedule_json",
        "schedules",
        "schedule_edits",
    )
}
PARTS = SCHEDULES | {
    f"fastslow.{name}" for name in ("masks", "pool_plans", "pooling", "positions")
}
MASK_READERS = {
    f"fastslow.{name}"
    for name in ("_block_runs", "accounting", "attention", "block_masks", "varlen")
}
CORE = (
    PARTS
    | MASK_READERS
    | {
        f"fastslow.{name}"
        for name in (
            "cross_entropy",
            "diagnostics",
            "layouts",
            "loss_plans",
            "losses",
            "spans",
        )
    }
)
KERNELS = {f"fastslow._gpu_{name}" for name in ("attention", "bags", "block_masks")}
ROOMS: dict[str, set[str]] = {
    **{room: set() for room in SHARED},
    "fastslow._fits": {"fastslow._shapes"},
    **{kernel: {"fastslow._typing"} for kernel in KERNELS},
    **dict.fromkeys(INTEGERS - SHARED, SHARED),
    **dict.fromkeys(SCHEDULES - INTEGERS, SCHEDULES),
    **dict.fromkeys(PARTS - SCHEDULES, SCHEDULES),
    "fastslow._taps": SCHEDULES,
    "fastslow.pool_plans": SCHEDULES | {"fastslow._taps"},
    "fastslow._bags": {"fastslow._gpu_bags"},
    "fastslow._maxima": {"fastslow._bags", "fastslow.pool_plans"},
    "fastslow.pooling": SCHEDULES
    | {"fastslow._bags", "fastslow._maxima", "fastslow.pool_plans"},
    **dict.fromkeys(MASK_READERS, INTEGERS | {"fastslow.masks"}),
    "fastslow.accounting": INTEGERS | {"fastslow.masks", "fastslow._block_runs"},
    "fastslow.block_masks": INTEGERS
    | {"fastslow.masks", "fastslow._block_runs", "fastslow._gpu_block_masks"},
    "fastslow.spans": SCHEDULES,
    "fastslow.layouts": PARTS | {"fastslow.spans"},
    "fastslow.loss_plans": PARTS | {"fastslow.layouts", "fastslow.spans"},
    "fastslow.cross_entropy": SHARED | {"fastslow.loss_plans"},
    "fastslow.diagnostics": {"fastslow._shapes"},
    "fastslow.losses": INTEGERS,
    "fastslow.plotting": CORE,
    "fastslow.testing": {"fastslow.testing.checks"},
    "fastslow.testing.checks": CORE
    | {"fastslow.plotting", "fastslow.testing.strategies"},
    "fastslow.testing.reference": set(),
    "fastslow.testing.strategies": CORE,
    "fastslow.qwen2_vl": CORE | {"fastslow._gpu_attention"},
    "fastslow.integrations": CORE | {"fastslow._plans", "fastslow.qwen2_vl"},
    "fastslow": CORE,
}
"""Every room, and the rooms beside itself that it may import."""

BESIDES = {
    **{kernel: {"triton"} for kernel in KERNELS},
    "fastslow.integrations": {
        "lmms_engine",
        "omegaconf",
        "pathlib",
        "sys",
        "torch.distributed",
        "transformers",
        "yaml",
    },
    "fastslow.qwen2_vl": {"transformers"},
    "fastslow.testing.checks": {"hypothesis"},
    "fastslow.testing.strategies": {"hypothesis"},
}
"""What a room may import beside rooms, LIBRARIES and the standard library."""


EDGE_ROOMS = {
    "ranks": set(),
    "media": set(),
    "files": {"ranks"},
    "data": {"files", "media", "ranks"},
    "weights": {"files", "ranks"},
    "training": {"ranks", "weights"},
    "checkpoints": {"files", "ranks"},
    "estimates": {"data", "training", "weights"},
    "reports": {"checkpoints", "files", "ranks"},
    "evaluation": {"data", "media", "ranks", "weights"},
}
"""Every room of ``recipes.edge``, and the rooms beside itself that it may import."""

BELOW_EDGE = {"recipes.config", "recipes.settings"}
"""What every room of ``recipes.edge`` may import, and what imports none of them."""


def forbidden_imports(module: str, source: str) -> list[str]:
    """Name the imports of a module that its room does not allow.

    Args:
        module: Dotted name, such as ``fastslow.masks``.
        source: Its Python source.

    Returns:
        The dotted names; a module without a room is named itself.
    """
    room = _room_of(module)
    if room == "fastslow" and module != "fastslow":
        return [module]
    return [name for name in _imports(ast.parse(source)) if not _is_allowed(name, room)]


def _is_allowed(name: str, room: str) -> bool:
    if _is_in(name, BESIDES.get(room, set())):
        return True
    if _is_in(name, EFFECTS):
        return False
    if _is_in(name, {"fastslow"}):
        return _room_of(name) in ROOMS[room] | {room}
    return _is_in(name, LIBRARIES | sys.stdlib_module_names)


def _room_of(module: str) -> str:
    return max((room for room in ROOMS if _is_in(module, {room})), key=len)


def _is_in(name: str, packages: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: n + 1]) in packages for n in range(len(parts)))


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yield every imported name, dotted, those within functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = "." * node.level + (node.module or "")
            yield from (f"{parent}.{alias.name}" for alias in node.names)


def forbidden_at_the_edge(module: str, source: str) -> list[str]:
    """Name the imports of a module of ``recipes.edge`` that its room does not allow."""
    room = module.split(".")[2]
    rooms = {f"recipes.edge.{name}" for name in EDGE_ROOMS[room] | {room}}
    return _imports_of_recipes(source, rooms | BELOW_EDGE)


def _imports_of_recipes(source: str, allowed: set[str]) -> list[str]:
    """Name what a module imports of ``recipes``, but for what is allowed."""
    names = _imports(ast.parse(source))
    ours = [n for n in names if n.startswith(".") or _is_in(n, {"recipes"})]
    return [name for name in ours if not _is_in(name, allowed)]


def _module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("file", FILES, ids=_module_of)
def test_every_module_keeps_to_its_room(file: Path) -> None:
    assert forbidden_imports(_module_of(file), file.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "forbidden"),
    [
        ("fastslow.masks", "import transformers", "transformers"),
        ("fastslow.masks", "def f():\n    import numpy as np", "numpy"),
        ("fastslow.grids", "from fastslow.masks import f", "fastslow.masks.f"),
        ("fastslow.grids", "from fastslow.ragged import f", "fastslow.ragged.f"),
        ("fastslow.grids", "from . import masks", "..masks"),
        ("fastslow.ragged", "from fastslow import Ragged", "fastslow.Ragged"),
        ("fastslow.losses", "import os.path", "os.path"),
        ("fastslow.losses", "if True:\n    from time import time", "time.time"),
        ("fastslow.losses", "from torch import distributed", "torch.distributed"),
        (
            "fastslow.losses",
            "from recipes.edge.media import video",
            "recipes.edge.media.video",
        ),
        ("fastslow.losses", "import importlib.metadata", "importlib.metadata"),
        ("fastslow.plotting", "import matplotlib.pyplot", "matplotlib.pyplot"),
        ("fastslow.testing.reference", "import hypothesis", "hypothesis"),
        (
            "fastslow.testing.reference",
            "from fastslow.grids import pooled_grid",
            "fastslow.grids.pooled_grid",
        ),
        ("fastslow.qwen2_vl.plan", "import datasets", "datasets"),
        ("fastslow.qwen2_vl.plan", "from recipes import edge", "recipes.edge"),
        ("fastslow", "import fastslow.qwen2_vl", "fastslow.qwen2_vl"),
        ("fastslow.qwen2_vl.plan", "import lmms_engine", "lmms_engine"),
        (
            "fastslow.qwen2_vl.plan",
            "from fastslow.integrations import lmms_engine",
            "fastslow.integrations.lmms_engine",
        ),
        ("fastslow.cellar", "", "fastslow.cellar"),
    ],
)
def test_a_bad_import_is_found(module: str, source: str, forbidden: str) -> None:
    assert forbidden_imports(module, source) == [forbidden]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fastslow.masks", "import math, torch.nn.functional as F"),
        ("fastslow.masks", "from fastslow.ragged import Ragged"),
        ("fastslow._bags", "def f():\n    from fastslow._gpu_bags import g"),
        ("fastslow.qwen2_vl.plan", "from fastslow.qwen2_vl.chat import f"),
        ("fastslow.qwen2_vl.plan", "from transformers.masking_utils import sdpa_mask"),
    ],
)
def test_a_good_import_passes(module: str, source: str) -> None:
    assert forbidden_imports(module, source) == []


def test_every_room_is_there() -> None:
    assert {_room_of(_module_of(file)) for file in FILES} == ROOMS.keys()


@pytest.mark.parametrize("file", EDGE_FILES, ids=_module_of)
def test_every_module_at_the_edge_keeps_to_its_room(file: Path) -> None:
    assert forbidden_at_the_edge(_module_of(file), file.read_text()) == []


@pytest.mark.parametrize("file", SETTINGS_FILES, ids=_module_of)
def test_settings_stand_below_the_edge(file: Path) -> None:
    assert _imports_of_recipes(file.read_text(), {"recipes.settings"}) == []


@pytest.mark.parametrize(
    ("source", "forbidden"),
    [
        ("from recipes.edge.files.memos import f", []),
        ("from recipes.edge.data.loader import f", ["recipes.edge.data.loader.f"]),
        ("def f():\n    import recipes.edge.data", ["recipes.edge.data"]),
        ("from recipes.config import Config", []),
        ("from recipes.data import Data", ["recipes.data.Data"]),
        ("from recipes import train", ["recipes.train"]),
        ("from ..data import loader", ["..data.loader"]),
        ("import os, transformers", []),
    ],
)
def test_a_bad_import_at_the_edge_is_found(source: str, forbidden: list[str]) -> None:
    assert forbidden_at_the_edge("recipes.edge.weights.names", source) == forbidden


def test_every_room_at_the_edge_is_there() -> None:
    assert {file.parent.name for file in EDGE_FILES} == EDGE_ROOMS.keys()
    told = [line.split()[0] for line in (edge.__doc__ or "").splitlines()[5:] if line]
    assert told == list(EDGE_ROOMS)
    for room, allowed in EDGE_ROOMS.items():  # each stands below those that it imports
        order = list(EDGE_ROOMS)
        assert all(order.index(other) < order.index(room) for other in allowed)


OPTIONAL = {
    "av",
    "beartype",
    "datasets",
    "hypothesis",
    "lmms_engine",
    "matplotlib",
    "pandas",
    "pyarrow",
    "pytest",
    "recipes",
    "tensorboard",
    "tokenizers",
    "tqdm",
    "transformers",
    "triton",
    "tyro",
}
"""Packages that the library must not need."""


def imported_by(statement: str) -> tuple[set[str], float]:
    """Run an import in a new process that has imported torch.

    Args:
        statement: The import.

    Returns:
        The top-level packages that it added, and its seconds.
    """
    script = f"""
import sys, time, torch
before, start = set(sys.modules), time.perf_counter()
{statement}
print(time.perf_counter() - start, *sorted(set(sys.modules) - before))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    seconds, *modules = done.stdout.split()
    return {name.partition(".")[0] for name in modules}, float(seconds)


def test_the_library_imports_no_optional_package() -> None:
    packages, seconds = imported_by(
        "from fastslow import build_schedule, frame_causal_mask"
    )
    print(f"importing fastslow takes {seconds:.2f} s beyond torch")
    assert "fastslow" in packages
    assert packages & OPTIONAL == set()


def test_an_optional_package_would_be_seen() -> None:
    packages, _ = imported_by("import fastslow.testing.strategies")
    assert packages & OPTIONAL == {"hypothesis"}
