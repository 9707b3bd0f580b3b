"""A step of the recipe has the losses and gradients of one that is written in loops.

With ``FASTSLOW_STEPS`` so many seeds are taken, as ``nox -s steps`` does, else a few.
"""

import ast
import os
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import AutoConfig, AutoTokenizer

from recipes.settings.strategies import CONSTRUCTORS
from tests.oracles.whole_step.model import Reference
from tests.oracles.whole_step.options import Options, Window
from tests.oracles.whole_step.recipe_step import OWN_STRATEGIES, take_step
from tests.oracles.whole_step.samples import read_sample
from tests.oracles.whole_step.settings import (
    ARGUMENTS,
    VALUES,
    Setting,
    draw,
    make_checkpoint,
    make_pool,
    make_setting,
)

FEW = (21, 23, 29, 40, 60, 77, 115)
"""Quick ones, among whose rows are text, pictures, and several clips in one."""

SEEDS = range(int(os.environ.get("FASTSLOW_STEPS", "0"))) or FEW

TOLERANCE = 1e-5
"""Relative: weights are float64, but pixels, norms and softmax are float32."""

NO_REFERENCE = {"recipe_step", "settings"}
"""Modules of the package that make what is compared."""

Numbers = dict[str, float]


@pytest.fixture(autouse=True)
def own_strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    for build in OWN_STRATEGIES:
        monkeypatch.setitem(CONSTRUCTORS, build.__name__, build)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep the checkpoints and the data of all settings."""
    return tmp_path_factory.mktemp("steps")


class Comparison:
    """A step of the recipe, and the same by the reference."""

    def __init__(
        self, setting: Setting, folder: Path, output: Path, world: Any
    ) -> None:
        self._setting = setting
        self._checkpoint = make_checkpoint(folder, setting)
        self._data = make_pool(folder, setting)
        self._taken = take_step(setting, self._checkpoint, self._data, output, world)
        self._config = AutoConfig.from_pretrained(self._checkpoint)
        has_target = any(name.startswith("target") for name in self._taken.weights)
        self._reference = Reference(self._config, has_target_tower=has_target)

    def errors(self) -> Numbers:
        """Tell how far off every number and every gradient is, relatively."""
        weights, taken = dict(self._taken.weights), self._taken
        trained = {name: weights[name].requires_grad_() for name in taken.trained}
        loss, numbers = self._expected(self._setting.options)
        found = torch.autograd.grad(
            loss, list(trained.values()), allow_unused=True, materialize_grads=True
        )
        whole = float(sum(gradient.square().sum() for gradient in found)) ** 0.5
        errors = errors_of(taken.numbers, numbers)
        for name, expected in zip(trained, found, strict=True):
            own = taken.gradients.get(name, torch.zeros_like(expected))
            size = max(float(expected.norm()), 1e-6 * whole, 1e-12)
            errors[name] = float((own - expected).norm()) / size
        return errors

    def errors_under(self, options: Options) -> Numbers:
        """Tell how far off every number is where the reference has other options."""
        with torch.no_grad():
            return errors_of(self._taken.numbers, self._expected(options)[1])

    def _expected(self, options: Options) -> tuple[Tensor, Numbers]:
        tokenizer = AutoTokenizer.from_pretrained(self._checkpoint)
        read = partial(
            read_sample,
            folder=self._data.parent,
            options=options,
            config=self._config,
            tokenizer=tokenizer,
        )
        samples = [read(row) for row in self._taken.samples]
        loss, numbers = functional_call(
            self._reference, dict(self._weights()), (samples, options)
        )
        return loss, numbers

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Give the weights of the reference, adapters added to theirs."""
        weights, others = self._taken.weights, self._setting.others
        for name, _ in self._reference.named_parameters():
            module, _, kind = name.rpartition(".")
            if name in weights:
                yield name, weights[name]
            elif not name.startswith("target_tower"):  # whose mergers nothing reads
                weight = weights[f"{module}.base_layer.{kind}"]
                if kind == "weight":
                    scale = others["lora_alpha"] / others["lora_rank"]
                    up = weights[f"{module}.lora_B.default.weight"]
                    weight = (
                        weight + scale * up @ weights[f"{module}.lora_A.default.weight"]
                    )
                yield name, weight


def errors_of(found: Numbers, expected: Numbers) -> Numbers:
    return {
        name: abs(value - expected[name]) / max(abs(value), abs(expected[name]), 1e-3)
        for name, value in found.items()
    }


Compare = Callable[[Setting], Comparison]


@pytest.fixture
def compare(folder: Path, tmp_path: Path, world: Any) -> Compare:
    return lambda setting: Comparison(setting, folder, tmp_path / "run", world)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_step_is_the_same_in_loops(compare: Compare, seed: int) -> None:
    setting = draw(seed)
    print(setting)
    errors = compare(setting).errors()
    worst = max(errors, key=lambda name: errors[name])
    print(f"the largest error is {errors[worst]:.1e}, of {worst}")
    assert {name: e for name, e in errors.items() if not e <= TOLERANCE} == {}


def test_the_few_seeds_take_everything() -> None:
    settings = [draw(seed) for seed in FEW]
    options = [setting.options for setting in settings]
    for name in ("attention", "mm_spatial_pool_mode", "pairing", "reduction"):
        known = {getattr(each, name) for each in options}
        assert known == set((VALUES | ARGUMENTS)[name]), name
    for name in ("family", "tower", "gradient_accumulation_steps", "is_tied"):
        assert {each.others[name] for each in settings} == set(VALUES[name]), name
    strategies = {each.strategy[0] for each in options}
    assert strategies >= {"kernel_schedule", "two_streams", "two_of_three_tokens"}
    assert any(each.others["lora_rank"] for each in settings)
    assert any(each.others.get("padding") for each in settings)
    assert any(each.fast_scale > 1 for each in options)
    assert any(each.video_fps for each in options)
    assert any(each.window for each in options)
    assert any(each.change_weights for each in options)
    assert any(each.normalize_targets for each in options)


EVERYTHING = make_setting(
    0,
    {
        "family": "qwen2_5_vl",
        "mm_spatial_pool_stride": 4,
        "fast_scale": 2,
        "max_frames_num": 6,
        "video_fps": 3.0,
        "add_time_instruction": True,
        "min_pixels": 400,
        "max_pixels": 2500,
        "next_frame_distance": "smooth_l1",
        "tokens_per_row": 600,
        "packing_window": 4,
        "tower": "trained",
        "pairing": "common_grid",
        "reduction": "video",
        "normalize_targets": True,
        "change_weights": True,
        "window": Window(frames=1, keep_text="prefix", keep_slow=True),
        "padding": 13,
    },
)
OTHERS: tuple[tuple[str, Any], ...] = (
    ("strategy", ("last_slow", {})),
    ("slow_frame_ratio", 0.3),
    ("mm_spatial_pool_stride", 2),
    ("mm_spatial_pool_mode", "max"),
    ("fast_scale", 1),
    ("max_frames_num", 4),
    ("video_fps", 0.0),
    ("add_time_instruction", False),
    ("min_pixels", 1000),
    ("max_pixels", 1600),
    ("attention", "causal"),
    ("loss_weight", 1.7),
    ("next_frame_distance", "mse"),
    ("window", None),
    ("window", Window(frames=2, keep_text="prefix", keep_slow=True)),
    ("window", Window(frames=1, keep_text="none", keep_slow=True)),
    ("window", Window(frames=1, keep_text="prefix", keep_slow=False)),
    ("after_video_rule", "spatial_axes"),
    ("pairing", "source_grid"),
    ("reduction", "frame"),
    ("normalize_targets", False),
    ("change_weights", False),
)
"""Every option by another value."""


def test_another_setting_is_seen(compare: Compare) -> None:
    comparison = compare(EVERYTHING)
    assert max(comparison.errors().values()) <= TOLERANCE
    assert {name for name, _ in OTHERS} == {field.name for field in fields(Options)}
    for name, other in OTHERS:
        options = replace(EVERYTHING.options, **{name: other})
        largest = max(comparison.errors_under(options).values())
        assert largest > 100 * TOLERANCE, (name, other)


def shared_modules(source: str) -> set[str]:
    """Name the modules of this repository that a module imports from."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    ours = {"", "fastslow", "recipes", "tests"}
    return {name for name in found if name.partition(".")[0] in ours}


def test_the_reference_shares_no_code_with_what_it_judges() -> None:
    package = "tests.oracles.whole_step"
    files = Path(__file__).with_name("whole_step").glob("*.py")
    modules = {f"{package}.{f.stem}": f for f in files if f.stem not in NO_REFERENCE}
    assert len(modules) == 7
    for file in modules.values():
        assert shared_modules(file.read_text()) <= modules.keys(), file.name
    assert shared_modules("def f():\n    import fastslow.masks") == {"fastslow.masks"}
    assert shared_modules("from . import settings") == {"."}
