"""Strategies by name: the rules, and the constructors of the core."""

import inspect
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastslow
from fastslow import (
    FrameSchedule,
    build_schedule,
    kernel_schedule,
    repeat_strides,
    schedule_for_budget,
    schedule_from_grids,
    schedule_from_strides,
    two_level_schedule,
)
from fastslow.schedules import Strategy
from recipes.settings.strategies import (
    CONSTRUCTORS,
    parse_strategy,
    schedule_frames,
    settings_read,
    strategy_text,
)

RUN: dict[str, Any] = {
    "grid": (8, 6),
    "slow_ratio": 0.3,
    "slow_stride": 2,
    "fast_stride": 4,
}


@given(
    num_frames=st.integers(1, 20),
    rule=st.sampled_from(get_args(Strategy)),
    ratio=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    stride=st.integers(1, 4),
)
def test_a_rule_is_build_schedule(
    num_frames: int, rule: Strategy, ratio: float, stride: int
) -> None:
    strides = {"slow_stride": stride, "fast_stride": 2 * stride}
    found = schedule_frames(
        num_frames, grid=(4, 4), strategy=rule, slow_ratio=ratio, **strides
    )
    assert found == build_schedule(
        num_frames, strategy=rule, slow_ratio=ratio, **strides
    )
    if ratio in (0, 1):
        assert {frame.is_slow for frame in found.frames} == {ratio == 1}


ASKED: dict[str, tuple[str, FrameSchedule]] = {
    "build_schedule": (
        "build_schedule(strategy='uniform', fast_stride=8)",
        build_schedule(
            5, strategy="uniform", slow_ratio=0.3, slow_stride=2, fast_stride=8
        ),
    ),
    "repeat_strides": (
        "repeat_strides(pattern=(2, 4, 4), phase=1)",
        repeat_strides(5, (2, 4, 4), phase=1),
    ),
    "kernel_schedule": (
        "kernel_schedule(kernel=(2, 1, 2), is_slow=True)",
        kernel_schedule(5, (2, 1, 2), is_slow=True),
    ),
    "schedule_for_budget": (
        "schedule_for_budget(budget=60, strides=(1, 2, 4))",
        schedule_for_budget(5, (8, 6), 60, strides=(1, 2, 4)),
    ),
    "schedule_from_strides": (
        "schedule_from_strides(strides=(1, 2, 4, 2, 1), edge='floor')",
        schedule_from_strides((1, 2, 4, 2, 1), edge="floor"),
    ),
    "schedule_from_grids": (
        "schedule_from_grids(grids=((4, 4), (1, 1), (1, 1), (2, 2), (4, 4)))",
        schedule_from_grids([(4, 4), (1, 1), (1, 1), (2, 2), (4, 4)]),
    ),
    "two_level_schedule": (
        "two_level_schedule(is_slow=(True, False, False, True, False))",
        two_level_schedule(
            [True, False, False, True, False], slow_stride=2, fast_stride=4
        ),
    ),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_constructor_is_called(name: str) -> None:
    text, expected = ASKED[name]
    assert schedule_frames(5, strategy=text, **RUN) == expected
    name, arguments = parse_strategy(text)
    assert strategy_text({"name": name, **arguments}) == text


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_what_is_read_changes_the_schedule(name: str) -> None:
    """And nothing else does."""
    text, usual = ASKED[name]
    others = {
        "slow_frame_ratio": {"slow_ratio": 0.7},
        "mm_spatial_pool_stride": {"slow_stride": 3, "fast_stride": 6},
    }
    read = {
        setting
        for setting, other in others.items()
        if schedule_frames(5, strategy=text, **RUN | other) != usual
    }
    assert settings_read(text) == read


def test_every_constructor_from_numbers_is_known() -> None:
    """Of what gives a schedule, the rest takes schedules or text."""
    makers = {
        name
        for name in fastslow.__all__
        if inspect.isfunction(function := getattr(fastslow, name))
        and inspect.signature(function).return_annotation is FrameSchedule
    }
    others = {"keep_tokens", "merge_streams", "scale_fast_frames", "select_frames"}
    assert makers - others - {"schedule_from_json"} == set(CONSTRUCTORS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "interlaeve",
            (
                "frame_sampling_strategy is 'interlaeve'; the nearest known one is "
                "'interleave'"
            ),
        ),
        (
            "uniform(slow_ratio=1)",
            (
                "frame_sampling_strategy is 'uniform(slow_ratio=1)'; uniform takes no "
                "arguments"
            ),
        ),
        (
            "repeat_strides",
            "repeat_strides needs the argument 'pattern', which is not ",
        ),
        (
            "repeat_strides(patern=(2,))",
            (
                "repeat_strides has no argument 'patern' to set; the nearest one is "
                "'pattern'"
            ),
        ),
        (
            "build_schedule(num_frames=3)",
            "build_schedule has no argument 'num_frames' to set; the nearest one is ",
        ),
        (
            "repeat_strides(pattern=2)",
            "repeat_strides.pattern is 2; it must be a list, each of it a whole number",
        ),
        (
            "repeat_strides(pattern=(2, 2.5))",
            "repeat_strides.pattern is (2, 2.5); it must be a list, each of it ",
        ),
        (
            "kernel_schedule(kernel=2)",
            "kernel_schedule.kernel is 2; it must be a list of 3: a whole number,",
        ),
        (
            "kernel_schedule(kernel=(2, 2))",
            "kernel_schedule.kernel is (2, 2); it must be a list of 3: a whole number,",
        ),
        (
            "kernel_schedule(kernel=(2, 2, 2), edge='up')",
            "kernel_schedule.edge is 'up'; it must be one of ",
        ),
        *(
            (
                text,
                f"frame_sampling_strategy is {text!r}; it must be a name, or a call ",
            )
            for text in (
                "",
                "repeat_strides((2, 4))",
                "repeat_strides(pattern={[1]})",
                f"repeat_strides(pattern={'-' * 20_000}1)",
                "repeat_strides(**{'pattern': (2, 4)})",
                "repeat_strides(pattern=print())",
                "fastslow.repeat_strides(pattern=(2,))",
                "repeat_strides(pattern=(2,)",
                "a b",
                "(2, 4)",
            )
        ),
    ],
)
def test_a_strategy_that_cannot_be_meant(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_strategy(text)
    assert str(caught.value).startswith(message)


def test_an_argument_without_a_type_is_no_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bare(num_frames, stride=2):  # type: ignore[no-untyped-def]
        return repeat_strides(num_frames, (stride,))

    monkeypatch.setitem(CONSTRUCTORS, "bare", bare)
    assert schedule_frames(5, strategy="bare", **RUN) == repeat_strides(5, (2,))
    with pytest.raises(ValueError) as caught:
        parse_strategy("bare(stride=4)")
    assert str(caught.value) == (
        "bare has no annotation for 'stride'; a setting is read by its type"
    )


def test_a_strategy_of_a_file_has_a_name() -> None:
    with pytest.raises(ValueError) as caught:
        strategy_text({"pattern": [2, 4]})
    assert str(caught.value) == (
        "frame_sampling_strategy is {'pattern': [2, 4]}; it must have a name"
    )


def test_a_clip_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        schedule_frames(5, strategy="schedule_from_strides(strides=(1, 2))", **RUN)
    assert str(caught.value) == (
        "schedule_from_strides describes 2 frames but the clip has 5; both must agree"
    )


@pytest.mark.parametrize("edge", ["floor", "error"])
def test_what_a_constructor_refuses_is_refused(edge: str) -> None:
    text = f"kernel_schedule(kernel=(9, 1, 1), edge={edge!r})"
    with pytest.raises(ValueError):
        schedule_frames(5, strategy=text, **RUN)
