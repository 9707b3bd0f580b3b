"""Laws of ``fastslow.layouts``."""

import inspect
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import (
    IGNORED_LABEL,
    FrameSchedule,
    FrameWindow,
    KeyIntervals,
    Span,
    TextSpan,
    TokenLayout,
    VideoSpan,
    after_video,
    build_layout,
    count_tokens,
    dense_mask,
    interval_mask,
    schedule_from_strides,
    visible_intervals,
    visible_keys,
)
from fastslow.layouts import Attention
from fastslow.positions import AfterVideo
from fastslow.testing import reference
from fastslow.testing import strategies as fst

FIELDS = (
    "input_ids",
    "labels",
    "segment_ids",
    "frame_ids",
    "is_slow",
    "causal_ranks",
    "position_ids",
)
VIDEO = fst.VIDEO_TOKEN_ID

attentions = st.sampled_from(("frame_causal", "causal"))
paddings = st.integers(0, 15)
placed_samples = fst.samples(videos=fst.video_spans(placed=True))
placed_rows = fst.packed_samples(sample=placed_samples)
TOLD = VideoSpan(
    grid=(2, 3),
    schedule=schedule_from_strides((1, 2, 1)),
    times=(0, 0, 4),
    between=((7, 8), ()),
)


def plain(samples: Sequence[Sequence[Span]]) -> list[list[reference.Span]]:
    return [[astuple(span) for span in sample] for sample in samples]


@given(placed_samples)
def test_count_tokens__matches_layout(sample: list[Span]) -> None:
    layout = build_layout([sample], video_token_id=VIDEO)
    assert count_tokens(sample) == len(layout.input_ids)


@given(placed_rows, attentions, fst.after_video_rules())
def test_build_layout__packs(
    samples: list[list[Span]], attention: Attention, rule: AfterVideo
) -> None:
    settings: dict[str, Any] = {"attention": attention, "after_video_rule": rule}
    packed = build_layout(samples, video_token_id=VIDEO, **settings)
    alone = [build_layout([s], video_token_id=VIDEO, **settings) for s in samples]
    for name in FIELDS:
        parts = [getattr(layout, name) for layout in alone]
        if name == "segment_ids":
            parts = [part + segment for segment, part in enumerate(parts)]
        assert torch.equal(getattr(packed, name), torch.cat(parts, -1)), name
    assert packed.clips == tuple(clip for layout in alone for clip in layout.clips)


@given(placed_rows, attentions)
def test_build_layout__ranks_sorted(
    samples: list[list[Span]], attention: Attention
) -> None:
    layout = build_layout(samples, video_token_id=VIDEO, attention=attention)
    for segment in range(len(samples)):
        ranks = layout.causal_ranks[layout.segment_ids == segment]
        assert ranks[0] == 0
        steps = ranks.diff()
        assert ((steps == 0) | (steps == 1)).all()


def runs_of(samples: list[list[Span]]) -> torch.Tensor:
    """Number the text tokens and the pooled frames of a row, token by token."""
    lengths = list[int]()
    for span in (span for sample in samples for span in sample):
        if isinstance(span, TextSpan):
            lengths += [1] * len(span.token_ids)
        else:
            lengths += reference.tokens_per_frame(span.grid, astuple(span.schedule))
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


@given(fst.packed_samples())
def test_build_layout__frames_share_rank(samples: list[list[Span]]) -> None:
    layout = build_layout(samples, video_token_id=VIDEO)
    segment, run = layout.segment_ids, runs_of(samples)
    same_segment = segment[:, None] == segment
    same_rank = layout.causal_ranks[:, None] == layout.causal_ranks
    assert torch.equal(same_rank & same_segment, run[:, None] == run)

    causal = build_layout(samples, video_token_id=VIDEO, attention="causal")
    same_rank = causal.causal_ranks[:, None] == causal.causal_ranks
    itself = torch.eye(len(run), dtype=torch.bool)
    assert torch.equal(same_rank & same_segment, itself)


@given(placed_rows, paddings)
def test_build_layout__padding(samples: list[list[Span]], padding: int) -> None:
    real = sum(map(count_tokens, samples))
    layout = build_layout(samples, video_token_id=VIDEO, length=real + padding)
    assert len(layout.input_ids) == real + padding
    assert (layout.segment_ids[:real] >= 0).all()
    assert (layout.segment_ids[real:] == -1).all()
    assert (layout.frame_ids[real:] == -1).all()
    assert (layout.labels[real:] == IGNORED_LABEL).all()
    bare = build_layout(samples, video_token_id=VIDEO)
    for name in FIELDS:
        assert torch.equal(getattr(layout, name)[..., :real], getattr(bare, name))


@given(placed_rows, attentions, fst.after_video_rules(), paddings)
@example([[TextSpan(token_ids=(5,)), TOLD, TOLD]], "frame_causal", "all_axes", 1)
@example([[TOLD, TextSpan(token_ids=(5,))]], "causal", "spatial_axes", 1)
@example(
    [
        [
            VideoSpan(grid=(2, 3), schedule=schedule_from_strides((1,) * 5)),
            TextSpan(token_ids=(7,)),
        ]
    ],
    "frame_causal",
    "spatial_axes",
    1,
)
def test_build_layout__matches_reference(
    samples: list[list[Span]], attention: Attention, rule: AfterVideo, padding: int
) -> None:
    settings: dict[str, Any] = {
        "video_token_id": VIDEO,
        "attention": attention,
        "after_video_rule": rule,
        "length": sum(map(count_tokens, samples)) + padding,
    }
    layout = build_layout(samples, **settings)
    for name, expected in reference.layout(plain(samples), **settings).items():
        assert getattr(layout, name).tolist() == expected, name
    assert layout.clips == tuple(
        span for sample in samples for span in sample if isinstance(span, VideoSpan)
    )


windows = st.builds(
    FrameWindow,
    frames=st.integers(1, 4),
    keep_text=st.sampled_from(("prefix", "all", "none")),
    keep_slow=st.booleans(),
)
plain_rows = fst.packed_samples(
    sample=fst.samples(videos=fst.video_spans(plain=True, placed=True))
)


def pairs_of(visible: KeyIntervals) -> list[list[bool]]:
    pairs: list[list[bool]] = dense_mask(
        interval_mask(visible), len(visible.start)
    ).tolist()
    return pairs


@given(fst.layouts())
def test_visible_keys__no_window(layout: TokenLayout) -> None:
    visible = visible_keys(layout)
    expected = visible_intervals(layout.causal_ranks, layout.segment_ids)
    assert torch.equal(visible.start, expected.start)
    assert torch.equal(visible.stop, expected.stop)
    assert visible.kept is None


@given(plain_rows, windows)
def test_visible_keys__keeps(samples: list[list[Span]], window: FrameWindow) -> None:
    layout = build_layout(samples, video_token_id=VIDEO)
    pairs = pairs_of(visible_keys(layout, window))
    kept = reference.kept_tokens(
        plain(samples), keep_text=window.keep_text, keep_slow=window.keep_slow
    )
    segments = layout.segment_ids.tolist()
    for query, row in enumerate(pairs):
        for key in range(query):
            if kept[key] and segments[key] == segments[query]:
                assert row[key]


@given(fst.packed_samples(), windows, paddings)
def test_visible_keys__matches_reference(
    samples: list[list[Span]], window: FrameWindow, padding: int
) -> None:
    length = sum(map(count_tokens, samples)) + padding
    layout = build_layout(samples, video_token_id=VIDEO, length=length)
    is_kept = reference.kept_tokens(
        plain(samples),
        keep_text=window.keep_text,
        keep_slow=window.keep_slow,
        length=length,
    )
    columns = [
        column.tolist()
        for column in (layout.causal_ranks, layout.segment_ids, layout.frame_ids)
    ]
    frames = list[tuple[int, int]]()
    for _, segment, frame in zip(*columns, strict=True):
        if frame >= 0:
            frames.append((segment, frame))
    if frames != sorted(frames):
        with pytest.raises(ValueError, match="frames must be sorted within a segment"):
            visible_keys(layout, window)
        return
    expected = reference.window_pairs(*columns, window.frames, is_kept)
    visible = visible_keys(layout, window)
    assert pairs_of(visible) == expected
    if visible.kept is not None:
        assert visible.kept.is_kept.tolist() == is_kept


@given(fst.layouts())
def test_every_tensor_is_int64_or_bool_on_the_cpu(layout: TokenLayout) -> None:
    for name in FIELDS:
        tensor = getattr(layout, name)
        expected = torch.bool if name == "is_slow" else torch.int64
        assert (tensor.dtype, tensor.device.type) == (expected, "cpu"), name


@given(fst.packed_samples())
def test_only_trained_text_is_labelled(samples: list[list[Span]]) -> None:
    layout = build_layout(samples, video_token_id=VIDEO)
    spans = [span for sample in samples for span in sample]
    trained = [span for span in spans if isinstance(span, TextSpan) and span.trained]
    labels = layout.labels[layout.labels != IGNORED_LABEL]
    assert labels.tolist() == [i for span in trained for i in span.token_ids]
    assert (layout.input_ids[layout.frame_ids >= 0] == VIDEO).all()


def test_frames_count_on_through_the_clips_of_a_sample() -> None:
    clip = VideoSpan(grid=(1, 1), schedule=schedule_from_strides((1, 1)))
    layout = build_layout([[clip, clip], [clip]], video_token_id=VIDEO)
    assert layout.frame_ids.tolist() == [0, 1, 2, 3, 0, 1]
    assert layout.causal_ranks.tolist() == [0, 1, 2, 3, 0, 1]


def test_a_sample_without_spans_takes_no_room() -> None:
    text = TextSpan(token_ids=(5, 6))
    layout = build_layout([[], [text], []], video_token_id=VIDEO)
    assert layout.input_ids.tolist() == [5, 6]
    assert layout.segment_ids.tolist() == [1, 1]
    assert count_tokens([]) == 0


@pytest.mark.parametrize("samples", [[], [[]], [[], []], [[TextSpan(token_ids=())]]])
def test_nothing_to_lay_out_is_an_error(samples: list[list[Span]]) -> None:
    with pytest.raises(ValueError) as error:
        build_layout(samples, video_token_id=VIDEO)
    assert str(error.value) == (
        f"samples has {len(samples)} samples and no token to lay out"
    )


@pytest.mark.parametrize("length", [0, 1])
def test_a_row_holds_all_of_its_samples(length: int) -> None:
    text = TextSpan(token_ids=(5,))
    with pytest.raises(ValueError) as error:
        build_layout([[text], [text]], video_token_id=VIDEO, length=length)
    assert str(error.value) == (
        f"length is {length} but the samples have 2 tokens; a row holds all of them"
    )


def test_a_clip_has_a_frame() -> None:
    with pytest.raises(ValueError) as error:
        VideoSpan(grid=(2, 2), schedule=FrameSchedule(num_frames=3, frames=()))
    assert str(error.value) == (
        "the schedule keeps no frame; a clip has at least 1 frame"
    )


def test_a_clip_and_its_schedule_fit() -> None:
    schedule = schedule_from_strides([1, 3], edge="floor")
    with pytest.raises(ValueError) as error:
        VideoSpan(grid=(2, 4), schedule=schedule)
    assert str(error.value) == (
        "a side of 2 tokens holds no whole window of stride 3; edge 'ceil' keeps it"
    )


def test_a_window_keeps_the_prefix_alone_by_default() -> None:
    spelled_out = FrameWindow(frames=1, keep_text="prefix", keep_slow=False)
    assert FrameWindow(frames=1) == spelled_out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frames": 0}, "frames is 0; it must be at least 1"),
        (
            {"frames": 1, "keep_text": "some"},
            "keep_text is 'some'; it must be one of prefix, all, none",
        ),
    ],
)
def test_a_window_is_refused_where_it_is_made(
    given: dict[str, Any], message: str
) -> None:
    window: Any = inspect.unwrap(FrameWindow.__init__)
    with pytest.raises(ValueError) as error:
        window(object.__new__(FrameWindow), **given)
    assert str(error.value) == message


def test_unknown_words_are_refused() -> None:
    lay: Any = inspect.unwrap(build_layout)
    move: Any = inspect.unwrap(after_video)
    with pytest.raises(ValueError) as error:
        lay([[TextSpan(token_ids=(1,))]], video_token_id=VIDEO, attention="full")
    assert str(error.value) == (
        "attention is 'full'; it must be one of frame_causal, causal"
    )
    with pytest.raises(ValueError) as error:
        lay([[TextSpan(token_ids=(1,))]], video_token_id=VIDEO, after_video_rule="time")
    assert str(error.value) == (
        "after_video_rule is 'time'; it must be one of all_axes, spatial_axes"
    )
    with pytest.raises(ValueError) as error:
        move((2, 2), 1, rule="time")
    assert str(error.value) == (
        "rule is 'time'; it must be one of all_axes, spatial_axes"
    )
