"""The layout of one packed row: what each token is, and what it may read."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from fastslow._plans import integers
from fastslow._runs import starts_run
from fastslow._shapes import check_word, flag, positive, whole_number
from fastslow.frames import tokens_per_frame
from fastslow.masks import KeyIntervals, visible_intervals
from fastslow.positions import AfterVideo, after_video, video_positions
from fastslow.spans import Span, TextSpan, VideoSpan, check_sample

Attention = Literal["frame_causal", "causal"]
KeptText = Literal["prefix", "all", "none"]

IGNORED_LABEL = -100
"""Label of a token that is not trained, as in PyTorch and transformers."""


@dataclass(frozen=True, kw_only=True)
class FrameWindow:
    """What a token sees of the past, counted in frames.

    Attributes:
        frames: Frames that it sees, the latest one begun included; at least 1.
        keep_text: Which text stays visible for ever: ``prefix``, what comes before the
            first clip of a sample; ``all``; or ``none``, so that text expires with the
            frame before it.
        keep_slow: Whether slow frames stay visible for ever.
    """

    frames: int
    keep_text: KeptText = "prefix"
    keep_slow: bool = False

    def __post_init__(self) -> None:
        """Check that it sees a frame and what it keeps is known."""
        object.__setattr__(self, "frames", positive("frames", self.frames))
        check_word("keep_text", self.keep_text, KeptText)
        object.__setattr__(self, "keep_slow", flag("keep_slow", self.keep_slow))


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Everything that follows from shapes alone about one packed row.

    Attributes:
        input_ids: Token ids; video tokens carry the placeholder id.
        labels: The token where it is trained, else ``IGNORED_LABEL``; not shifted.
        segment_ids: Packed sample of each token; -1 is padding.
        frame_ids: Frame of its sample that a video token belongs to; -1 is text.
        is_slow: Whether a token belongs to a slow frame.
        causal_ranks: Order of each token in its sample.
        position_ids: Four rows as Qwen2-VL takes them for packed samples: the place
            in the sample, then time, height and width.
        clips: The clips of the row, in order.
    """

    input_ids: Int[Tensor, " tokens"]
    labels: Int[Tensor, " tokens"]
    segment_ids: Int[Tensor, " tokens"]
    frame_ids: Int[Tensor, " tokens"]
    is_slow: Bool[Tensor, " tokens"]
    causal_ranks: Int[Tensor, " tokens"]
    position_ids: Int[Tensor, "4 tokens"]
    clips: tuple[VideoSpan, ...]


def count_tokens(sample: Sequence[Span]) -> int:
    """Count the tokens of a sample after pooling.

    Args:
        sample: The sample's spans in order.

    Returns:
        Its length in a packed row.

    Raises:
        ValueError: If the sample holds something else than spans.

    Laws:
        matches_layout: equals the length of the layout of the sample alone:
            ``count_tokens(s) == len(build_layout([s]).input_ids)``

    Example:
        >>> from fastslow import schedule_from_strides
        >>> clip = VideoSpan(grid=(4, 4), schedule=schedule_from_strides([2, 4]))
        >>> count_tokens([TextSpan(token_ids=(7, 8)), clip])
        7
    """
    check_sample(sample)
    return sum(sum(_run_lengths(span)) for span in sample)


def build_layout(
    samples: Sequence[Sequence[Span]],
    *,
    video_token_id: int,
    attention: Attention = "frame_causal",
    after_video_rule: AfterVideo = "all_axes",
    length: int | None = None,
) -> TokenLayout:
    """Lay samples end to end in one row.

    Computed on the host before any pixel is read.

    Args:
        samples: The spans of each sample, in order; at least one token in all.
        video_token_id: Id that stands for a video token in ``input_ids``. A text may
            hold it too: ``frame_ids`` tell which tokens are of a clip.
        attention: ``frame_causal`` gives the tokens of a frame one rank, ``causal``
            gives every token its own.
        after_video_rule: Where text goes on after a clip, see ``after_video``.
        length: Tokens that the row is padded to; None adds no padding.

    Returns:
        The layout, on the CPU.

    Raises:
        ValueError: If the samples hold no token, more than ``length``, or something
            else than spans, a number is not whole, or a word is unknown.

    Laws:
        packs: without padding, the layout of a pack is its samples' layouts end to end:
            ``build_layout(a + b) == build_layout(a) ++ build_layout(b)``
        ranks_sorted: ranks never fall within a segment: ``rank[i] <= rank[i + 1] if
            segment[i] == segment[i + 1]``
        frames_share_rank: under ``frame_causal`` two tokens of a sample share a rank
            when they come from one pooled frame: ``(rank[i] == rank[j]) == (frame of i
            is frame of j)``
        padding: what fills the row up is at its end, in no segment, unlabelled:
            ``segment[real:] == -1, labels[real:] == -100``
        matches_reference: equals the loop-written reference: ``build_layout(s) ==
            reference.layout(s)``

    Example:
        >>> from fastslow import schedule_from_strides
        >>> clip = VideoSpan(grid=(2, 2), schedule=schedule_from_strides([1, 2]))
        >>> layout = build_layout([[TextSpan(token_ids=(5,)), clip]], video_token_id=9)
        >>> layout.causal_ranks.tolist(), layout.frame_ids.tolist()
        ([0, 1, 1, 1, 1, 2], [-1, 0, 0, 0, 0, 1])
    """
    check_word("attention", attention, Attention)
    check_word("after_video_rule", after_video_rule, AfterVideo)
    video_token_id = whole_number("video_token_id", video_token_id)
    parts = [
        _lay_sample(sample, segment, video_token_id, attention, after_video_rule)
        for segment, sample in enumerate(samples)
    ]
    tokens = sum(len(part.input_ids) for part in parts)
    if not tokens:
        raise ValueError(f"samples has {len(parts)} samples and no token to lay out")
    padding = 0 if length is None else whole_number("length", length) - tokens
    if padding < 0:
        raise ValueError(
            f"length is {length} but the samples have {tokens} tokens; a row holds all "
            "of them"
        )
    joined = {
        name: pad(
            torch.cat([getattr(p, name) for p in parts], -1), (0, padding), value=fill
        )
        for name, fill in _FIELDS_PADDED_WITH.items()
    }
    return TokenLayout(**joined, clips=sum((part.clips for part in parts), ()))


def visible_keys(
    layout: TokenLayout, window: FrameWindow | None = None
) -> KeyIntervals:
    """Tell which tokens of a packed row each of its tokens may read.

    A token that expires for one query has expired for all later ones, so that a server
    honours a window by dropping it from its cache.

    Args:
        layout: The packed row.
        window: How far back a token sees; to the start of its sample by default.

    Returns:
        The intervals, see ``visible_intervals``.

    Raises:
        ValueError: If ``window`` counts frames that do not stand in order, as those of
            a stream that goes back to the first frame.

    Laws:
        no_window: without a window, ``visible_intervals`` of ranks and segments:
            ``visible_keys(l) == visible_intervals(l.causal_ranks, l.segment_ids)``
        keeps: what the window keeps is read by all that come after it in its sample:
            ``reads(q, k) if kept[k] and k < q and segment[k] == segment[q]``
        matches_reference: equals the loop-written reference: ``reads ==
            reference.window_pairs(...)``

    Example:
        >>> from fastslow import dense_mask, interval_mask, repeat_strides
        >>> clip = VideoSpan(grid=(1, 1), schedule=repeat_strides(4, (1, 2)))
        >>> row = build_layout([[TextSpan(token_ids=(5,)), clip]], video_token_id=9)
        >>> visible = visible_keys(row, FrameWindow(frames=1, keep_slow=True))
        >>> dense_mask(interval_mask(visible), 5).int()
        tensor([[1, 0, 0, 0, 0],
                [1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 0, 1, 0],
                [1, 1, 0, 1, 1]], dtype=torch.int32)
    """
    if window is None:
        return visible_intervals(layout.causal_ranks, layout.segment_ids)
    return visible_intervals(
        layout.causal_ranks,
        layout.segment_ids,
        frame_ids=layout.frame_ids,
        window=window.frames,
        is_kept=_kept(layout, window),
    )


def _kept(layout: TokenLayout, window: FrameWindow) -> Tensor | None:
    """Mark the tokens that never expire; None if there is no such kind."""
    if window.keep_text == "none" and not window.keep_slow:
        return None
    is_video, segments = layout.frame_ids >= 0, layout.segment_ids
    kept = ~is_video & (segments >= 0)
    if window.keep_text == "none":
        kept = torch.zeros_like(kept)
    elif window.keep_text == "prefix":
        videos = is_video.cumsum(0)
        before = (videos - is_video.long()).where(starts_run(segments), 0)
        kept &= videos == before.cummax(0).values
    return kept | layout.is_slow if window.keep_slow else kept


_FIELDS_PADDED_WITH = {
    "input_ids": 0,
    "labels": IGNORED_LABEL,
    "segment_ids": -1,
    "frame_ids": -1,
    "is_slow": False,
    "causal_ranks": 0,
    "position_ids": 0,
}


def _lay_sample(
    sample: Sequence[Span],
    segment: int,
    video_token_id: int,
    attention: Attention,
    after_video_rule: AfterVideo,
) -> TokenLayout:
    """Lay out one sample; its frames count on through all of its clips."""
    check_sample(sample)
    table = [torch.empty(7, 0, dtype=torch.long, device="cpu")]
    place = frame = 0
    for span in sample:
        if isinstance(span, TextSpan):
            table.append(_text_columns(span, place))
            place += len(span.token_ids)
        else:
            extent = after_video(span.grid, span.time_extent, rule=after_video_rule)
            columns = _video_columns(span, place, frame, video_token_id)
            if span.between:
                columns = _set_apart(span, columns, place, extent)
                extent *= len(span.schedule.frames)
            table.append(columns)
            place += extent + sum(map(len, span.between))
            frame += span.schedule.num_frames
    input_ids, labels, frame_ids, slow, *coordinates = torch.cat(table, dim=1)
    index = torch.arange(len(input_ids), device="cpu")
    runs = [length for span in sample for length in _run_lengths(span)]
    ranks = torch.repeat_interleave(integers(runs))
    return TokenLayout(
        input_ids=input_ids,
        labels=labels,
        segment_ids=torch.full_like(index, segment),
        frame_ids=frame_ids,
        is_slow=slow > 0,
        causal_ranks=ranks if attention == "frame_causal" else index,
        position_ids=torch.stack([index, *coordinates]),
        clips=tuple(span for span in sample if isinstance(span, VideoSpan)),
    )


def _text_columns(span: TextSpan, place: int) -> Int[Tensor, "7 tokens"]:
    """Give id, label, frame, slowness, time, height and width of each text token."""
    ids = integers(span.token_ids)
    labels = ids if span.trained else torch.full_like(ids, IGNORED_LABEL)
    position = torch.arange(len(ids), device="cpu") + place
    no_frame, not_slow = torch.full_like(ids, -1), torch.zeros_like(ids)
    return torch.stack([ids, labels, no_frame, not_slow, *[position] * 3])


def _video_columns(
    span: VideoSpan, place: int, first_frame: int, video_token_id: int
) -> Int[Tensor, "7 tokens"]:
    """Give id, label, frame, slowness, time, height and width of each video token."""
    positions = video_positions(
        span.grid, span.schedule, start=place, times=span.frame_positions
    )
    numbers = [first_frame + frame.start for frame in span.schedule.frames]
    slowness = [frame.is_slow for frame in span.schedule.frames]
    lengths = integers(tokens_per_frame(span.grid, span.schedule))
    frames, slow = (integers(e).repeat_interleave(lengths) for e in (numbers, slowness))
    ids = torch.full_like(frames, video_token_id)
    labels = torch.full_like(ids, IGNORED_LABEL)
    return torch.stack([ids, labels, frames, slow, *positions])


def _set_apart(
    span: VideoSpan, columns: Tensor, place: int, extent: int
) -> Int[Tensor, "7 tokens"]:
    """Put the text between the frames, and let each frame begin where that text ends.

    Args:
        span: The clip.
        columns: Its frames' columns, each frame at ``place``.
        place: Where the clip begins.
        extent: Positions that a frame takes up.
    """
    words = integers([0, *map(len, span.between)])
    starts = words.cumsum(0) + extent * torch.arange(len(words), device="cpu")
    tokens = integers(tokens_per_frame(span.grid, span.schedule))
    frame, before = torch.repeat_interleave(tokens), torch.repeat_interleave(words)
    text = TextSpan(token_ids=tuple(chain.from_iterable(span.between)))
    joined = torch.cat([columns, _text_columns(text, place)], 1)
    moved = joined[4:] + torch.cat([starts[frame], extent * before])
    order = torch.cat([2 * frame + 1, 2 * before]).argsort(stable=True)
    return torch.cat([joined[:4], moved])[:, order]


def _run_lengths(span: Span) -> list[int]:
    """Count the tokens of each run that shares a causal rank."""
    if isinstance(span, TextSpan):
        return [1] * len(span.token_ids)
    lengths = tokens_per_frame(span.grid, span.schedule)
    if not span.between:
        return list(lengths)
    return [
        length
        for text, frame in zip(((), *span.between), lengths, strict=True)
        for length in (*[1] * len(text), frame)
    ]
