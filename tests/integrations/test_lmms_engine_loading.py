"""Every sample is trained once, or named; and a pass over nothing is an error."""

import warnings
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lmms_engine", reason="lmms-engine is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lmms_engine.datasets import DatasetConfig
    from loguru import logger
    from torchdata.stateful_dataloader import StatefulDataLoader

    from fastslow.integrations.lmms_engine import (
        FastSlowTrainer,
        FastSlowVisionIterable,
        read_config,
    )
    from fastslow.integrations.lmms_engine.loading import WatchedLoader

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital'")  # torchdata's, of torch

Settings = dict[str, Any]


@pytest.fixture
def make_stream(
    lmms_data: Path, run_settings: Callable[..., Settings]
) -> Callable[..., FastSlowVisionIterable]:
    """Build a stream of the eight samples, some settings of the data changed."""

    def make(**changes: Any) -> FastSlowVisionIterable:
        settings = run_settings(lmms_data)
        del settings["dataset_config"]["filter_overlong_workers"]
        settings["dataset_config"] |= {"dataset_type": "vision_iterable"} | changes
        made = FastSlowVisionIterable(
            DatasetConfig(**read_config(settings)["dataset_config"])
        )
        made.build()
        return made

    return make


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Take what is logged from warnings upwards."""
    words = list[str]()
    sink = logger.add(words.append, format="{level}: {message}", level="WARNING")
    yield words
    logger.remove(sink)


def loader_of(dataset: Any, **how: Any) -> WatchedLoader:
    """Load samples by their number of tokens, which is another for each."""
    how = {"batch_size": 1, "collate_fn": _lengths, **how}
    loader = StatefulDataLoader(dataset, **how)
    return WatchedLoader(loader=loader, is_over=lambda: False)


def _lengths(samples: list[Any]) -> list[int]:
    packs = [each if isinstance(each, list) else [each] for each in samples]
    return [len(sample["input_ids"]) for pack in packs for sample in pack]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("taken", [1, 2])
def test_a_stream_goes_on_after_what_it_handed_over(
    make_stream: Callable[..., Any], num_workers: int, batch_size: int, taken: int
) -> None:
    how = {"num_workers": num_workers, "batch_size": batch_size}
    expected = list(loader_of(make_stream(), **how))
    loader = loader_of(make_stream(), **how)
    batches = iter(loader)
    first = [next(batches) for _ in range(taken)]
    again = loader_of(make_stream(), **how)
    again.load_state_dict(loader.state_dict())
    assert first + list(again) == expected
    assert list(again) == expected  # and the next pass is whole


def test_what_fits_no_pack_is_named(
    make_stream: Callable[..., Any], said: list[str]
) -> None:
    lengths = sorted(chain.from_iterable(loader_of(make_stream())))
    most = lengths[4]
    packing = {"packing": True, "packing_length": most}
    given = chain.from_iterable(loader_of(make_stream(**packing)))
    assert sorted(given) == lengths[:5]
    assert len(said) == 4
    for tokens in lengths[5:]:
        assert any(f"has {tokens} tokens; packing_length is {most}" in w for w in said)
    assert said[-1] == (
        "WARNING: 3 samples were skipped: they have more tokens than packing_length, "
        f"{most}\n"
    )
    said.clear()
    kept = packing | {"filter_overlong": False}
    assert sorted(chain.from_iterable(loader_of(make_stream(**kept)))) == lengths
    assert said == []


def test_a_pass_over_nothing_is_an_error(make_stream: Callable[..., Any]) -> None:
    packing = {"packing": True, "packing_length": 5}
    with pytest.raises(ValueError, match=r"^the data of this process give no batch; w"):
        next(iter(loader_of(make_stream(**packing))))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_pass_that_ended_before_a_restart_is_not_empty(num_workers: int) -> None:
    how = {"num_workers": num_workers, "collate_fn": list, "batch_size": 2}
    loader = loader_of(range(4), **how)
    batches = iter(loader)
    assert [next(batches) for _ in range(2)] == [[0, 1], [2, 3]]
    assert loader.ends_pass
    again = loader_of(range(4), **how)
    again.load_state_dict(loader.state_dict())
    assert list(again) == [[0, 1], [2, 3]]


def test_a_state_of_lmms_engines_own_loader_is_refused() -> None:
    loader = loader_of(range(4), collate_fn=list)
    next(iter(loader))
    with pytest.raises(ValueError) as caught:
        loader.load_state_dict(loader.state_dict()["loader"])
    assert str(caught.value) == (
        "the checkpoint's dataloader_state was saved by a trainer that did not watch "
        "the passes over its data; it says no place to go on from, so start the run "
        "anew"
    )


def test_a_pass_stops_where_the_run_does() -> None:
    loader = loader_of(range(4), collate_fn=list)
    loader.is_over = lambda: loader.given == 2
    assert list(loader) == [[0], [1]]
    again = loader_of(range(4), collate_fn=list)
    again.load_state_dict(loader.state_dict())
    assert list(again) == [[2], [3]]
    assert not again.ends_pass


def test_the_last_step_of_a_pass_may_be_short() -> None:
    """Three micro-batches a step, four a pass: lmms-engine counts two steps a pass."""
    trainer = object.__new__(FastSlowTrainer)
    trainer.args = SimpleNamespace(gradient_accumulation_steps=3)
    trainer.train_dataloader = loader_of(range(4), collate_fn=lambda _: {})
    trainer.waiting = list[dict[str, Any]]()
    trainer._take_step = lambda rows: {"rows": len(rows)}
    batches = chain(trainer.train_dataloader, trainer.train_dataloader)
    taken = [trainer.training_step(batch).get("rows") for batch in batches]
    assert taken == [None, None, 3, 1] * 2
    assert trainer.accumulated_grad_steps == 0
