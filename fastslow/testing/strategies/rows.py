"""Spans, samples and packed rows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from fastslow.layouts import Attention, TokenLayout, build_layout, count_tokens
from fastslow.positions import AfterVideo
from fastslow.spans import Span, TextSpan, VideoSpan
from fastslow.testing.strategies.schedules import grid_schedules, grids, plain_schedules

VIDEO_TOKEN_ID = 9
"""Id of a video token in drawn layouts; drawn text may hold it too."""


def text_spans(
    *, min_tokens: int = 0, max_tokens: int = 4, max_token_id: int = 20
) -> st.SearchStrategy[TextSpan]:
    """Draw a run of text, trained or not."""
    ids = st.lists(
        st.integers(0, max_token_id), min_size=min_tokens, max_size=max_tokens
    )
    return st.builds(TextSpan, token_ids=ids.map(tuple), trained=st.booleans())


def video_spans(
    *,
    max_side: int = 4,
    max_frames: int = 4,
    max_stride: int = 5,
    plain: bool = False,
    placed: bool = False,
) -> st.SearchStrategy[VideoSpan]:
    """Draw a clip.

    Args:
        max_side: Longest side of its grid.
        max_frames: Frames at most.
        max_stride: Largest stride.
        plain: Whether its schedule is one stride per frame, or any schedule.
        placed: Whether it may have times of its own and text between its frames.
    """
    sizes = {"max_frames": max_frames, "max_stride": max_stride}
    spans = grids(max_side=max_side).flatmap(
        lambda grid: st.builds(
            VideoSpan,
            grid=st.just(grid),
            schedule=(
                plain_schedules(**sizes)
                if plain
                else grid_schedules(grid, **sizes).filter(lambda s: bool(s.frames))
            ),
        )
    )
    return spans.flatmap(_placed) if placed else spans


@st.composite
def _placed(draw: Callable[..., Any], span: VideoSpan) -> VideoSpan:
    """Give some clips times, and some text between their frames."""
    frames, gaps = span.schedule.num_frames, len(span.schedule.frames) - 1
    times = st.lists(st.integers(0, 9), min_size=frames, max_size=frames).map(sorted)
    text = st.lists(st.integers(1, 50), max_size=3).map(tuple)
    between = st.lists(text, min_size=gaps, max_size=gaps)
    return replace(
        span,
        times=tuple(draw(st.just([]) | times)),
        between=tuple(draw(st.just([]) | between)),
    )


def samples(
    *,
    max_spans: int = 4,
    texts: st.SearchStrategy[TextSpan] | None = None,
    videos: st.SearchStrategy[VideoSpan] | None = None,
) -> st.SearchStrategy[list[Span]]:
    """Draw the spans of a sample, with at least one token.

    Args:
        max_spans: Spans at most.
        texts: Strategy of the runs of text; ``text_spans()`` by default.
        videos: Strategy of the clips; ``video_spans()`` by default.
    """
    texts = text_spans() if texts is None else texts
    videos = video_spans() if videos is None else videos
    spans = st.lists(st.one_of(texts, videos), min_size=1, max_size=max_spans)
    return spans.filter(_holds_token)


def packed_samples(
    *, max_samples: int = 3, sample: st.SearchStrategy[list[Span]] | None = None
) -> st.SearchStrategy[list[list[Span]]]:
    """Draw the samples of one packed row.

    Args:
        max_samples: Samples at most.
        sample: Strategy of one sample; ``samples()`` by default.
    """
    sample = samples() if sample is None else sample
    return st.lists(sample, min_size=1, max_size=max_samples)


def layouts(
    *,
    rows: st.SearchStrategy[list[list[Span]]] | None = None,
    attention: Attention = "frame_causal",
    max_padding: int = 7,
) -> st.SearchStrategy[TokenLayout]:
    """Draw the layout of a packed row, padded or not.

    Args:
        rows: Strategy of the packed samples; ``packed_samples()`` by default.
        attention: As for ``build_layout``.
        max_padding: Tokens of padding at most.
    """
    return st.builds(
        lambda row, padding, rule: build_layout(
            row,
            video_token_id=VIDEO_TOKEN_ID,
            attention=attention,
            after_video_rule=rule,
            length=sum(map(count_tokens, row)) + padding,
        ),
        packed_samples() if rows is None else rows,
        st.integers(0, max_padding),
        after_video_rules(),
    )


def after_video_rules() -> st.SearchStrategy[AfterVideo]:
    """Draw the name of a rule for the text that follows a clip."""
    return st.sampled_from(("all_axes", "spatial_axes"))


def _holds_token(sample: list[Span]) -> bool:
    """Tell whether a sample has a token."""
    return any(isinstance(span, VideoSpan) or span.token_ids for span in sample)
