"""From samples to packed rows: every integer is planned before a pixel is decoded."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastslow import (
    FrameSchedule,
    Grid,
    Span,
    StreamState,
    VideoSpan,
    bucket_length,
    build_schedule,
    count_tokens,
    encoded_grids,
    merged_grid,
    merged_stride,
    next_bin,
    repeat_strides,
    scale_fast_frames,
)
from fastslow.layouts import Attention
from fastslow.qwen2_vl import (
    Family,
    RowPlan,
    VisionGeometry,
    clip_grid,
    encode_conversation,
    patchify_clip,
    place_clip,
    plan_row,
)
from fastslow.schedules import Strategy
from recipes.edge.dataset import BadSample, Sample
from recipes.edge.video import (
    VideoError,
    decode_frames,
    probe_video,
    sample_frame_indices,
)


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How a clip becomes tokens.

    Attributes:
        family: How pixels become patches, and how the backbone tells the time.
        max_frames: Raw frames sampled from a clip at most.
        strategy: Which frames are slow.
        slow_ratio: Share of slow frames.
        slow_stride: Pooling stride of slow frames, in patches; fast frames use twice
            that.
        fast_scale: How many times smaller fast frames are encoded along each side.
        attention: Whether the tokens of a frame share one rank.
        capacity: Tokens of a packed row at most.
        row_buckets: Lengths at most that rows are padded to, each a multiple of 128
            tokens; 0 pads no row.
    """

    family: Family
    max_frames: int
    strategy: Strategy
    slow_ratio: float
    slow_stride: int
    fast_scale: int
    attention: Attention
    capacity: int
    row_buckets: int


@dataclass(frozen=True, kw_only=True)
class PlannedSample:
    """A sample whose every token is known, its pixels still on disk.

    Attributes:
        sample: Where it comes from.
        frame_indices: Raw frames that will be decoded.
        schedule: Which of the frames that they make are slow.
        spans: Its text and its clip.
        num_tokens: Its length in a packed row.
    """

    sample: Sample
    frame_indices: tuple[int, ...]
    schedule: FrameSchedule
    spans: tuple[Span, ...]
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One packed row, decoded.

    Attributes:
        plan: Its integers.
        patches: The patches of its clips in order.
        sample_ids: The samples in it, in order.
        num_tokens: Tokens of real samples.
        num_frames: Raw frames decoded.
        bad: Samples of its bin that could not be decoded and were left out.
        state: Where the stream stands after this rank's and all other ranks' bins.
    """

    plan: RowPlan
    patches: Float[Tensor, "patches pixels"]
    sample_ids: tuple[str, ...]
    num_tokens: int
    num_frames: int
    bad: tuple[BadSample, ...]
    state: StreamState


def plan_samples(
    samples: Sequence[Sample],
    settings: ClipSettings,
    encode: Callable[[str], Sequence[int]],
) -> tuple[list[PlannedSample], list[BadSample]]:
    """Read each clip's metadata and plan its tokens.

    Args:
        samples: Conversations about clips.
        settings: How a clip becomes tokens.
        encode: Gives a text's token ids.

    Returns:
        The samples that can be trained on, and those that cannot, each with its
        reason.
    """
    planned, bad = [], []
    for sample in samples:
        try:
            planned.append(_plan_sample(sample, settings, encode))
        except (VideoError, ValueError) as error:
            bad.append(_unusable(sample, error))
    return planned, bad


def schedule_clip(
    num_frames: int, size: tuple[int, int], settings: ClipSettings
) -> tuple[Grid, FrameSchedule]:
    """Plan what becomes of a clip's frames.

    Args:
        num_frames: Raw frames that are sampled from it.
        size: Height and width of the video, in pixels.
        settings: How a clip becomes tokens.

    Returns:
        Merged grid of a frame, and the schedule.
    """
    geometry = settings.family.geometry
    frames, height, width = clip_grid(num_frames, *size, geometry)
    stride = merged_stride(settings.slow_stride, merge_size=geometry.merge_size)
    schedule = build_schedule(
        frames,
        strategy=settings.strategy,
        slow_ratio=settings.slow_ratio,
        slow_stride=stride,
        fast_stride=2 * stride,
    )
    if settings.fast_scale > 1:
        schedule = scale_fast_frames(schedule, settings.fast_scale)
    return merged_grid((height, width), merge_size=geometry.merge_size), schedule


def _unusable(sample: Sample, error: Exception) -> BadSample:
    """Name a sample whose clip cannot be used."""
    return BadSample(
        sample_id=sample.sample_id, source=str(sample.video), reason=str(error)
    )


def _plan_sample(
    sample: Sample, settings: ClipSettings, encode: Callable[[str], Sequence[int]]
) -> PlannedSample:
    """Plan one sample from its clip's metadata."""
    info = probe_video(sample.video)
    indices = sample_frame_indices(info.num_frames, settings.max_frames)
    grid, schedule = schedule_clip(len(indices), (info.height, info.width), settings)
    turns = [(turn.role, turn.text) for turn in sample.turns]
    seconds = [index / info.fps for index in indices]
    clip = place_clip(grid, schedule, seconds, family=settings.family, encode=encode)
    spans = encode_conversation(turns, clip.span, encode, opening=clip.opening)
    num_tokens = count_tokens(spans)
    if num_tokens > settings.capacity:
        raise ValueError(
            f"the sample has {num_tokens} tokens; a row holds {settings.capacity}"
        )
    return PlannedSample(
        sample=sample,
        frame_indices=indices,
        schedule=schedule,
        spans=spans,
        num_tokens=num_tokens,
    )


class PackedRows(Dataset[Row]):
    """Rows by bin: index it with the numbers of the samples that share one.

    A clip that cannot be decoded is left out of its row and reported in ``bad``. A
    row that is left without a clip gets a black one of a single token and no label,
    so that every rank calls the vision tower equally often.
    """

    def __init__(
        self,
        samples: Sequence[PlannedSample],
        settings: ClipSettings,
        video_token_id: int,
    ) -> None:
        """Keep what is needed to decode and plan rows."""
        self.samples = samples
        self.settings = settings
        self.video_token_id = video_token_id

    def __getitem__(self, request: tuple[tuple[int, ...], StreamState]) -> Row:
        """Decode the clips of one bin, and plan the row of those that decode."""
        chosen, state = request
        clips, kept, bad = [], list[PlannedSample](), []
        geometry = self.settings.family.geometry
        for planned in (self.samples[number] for number in chosen):
            try:
                frames = decode_frames(planned.sample.video, planned.frame_indices)
                clips.append(_patchify_as_planned(frames, planned, geometry))
            except VideoError as error:
                bad.append(_unusable(planned.sample, error))
            else:
                kept.append(planned)
        spans: list[tuple[Span, ...]] = [planned.spans for planned in kept]
        if not clips:
            spans.append((VideoSpan(grid=(1, 1), schedule=repeat_strides(1, (1,))),))
            clips.append(_black_clip(geometry))
        return Row(
            plan=plan_row(
                spans,
                video_token_id=self.video_token_id,
                attention=self.settings.attention,
                length=_row_length(spans, self.settings),
                merge_size=geometry.merge_size,
            ),
            patches=torch.cat(clips),
            sample_ids=tuple(planned.sample.sample_id for planned in kept),
            num_tokens=sum(planned.num_tokens for planned in kept),
            num_frames=sum(len(planned.frame_indices) for planned in kept),
            bad=tuple(bad),
            state=state,
        )


def stream_rows(
    dataset: PackedRows,
    state: StreamState,
    *,
    rank: int,
    world_size: int,
    window: int,
    seed: int,
    num_workers: int,
) -> Iterator[Row]:
    """Deal an endless stream of bins to ranks, and decode this rank's.

    Every rank draws the same bins and takes every ``world_size``-th one, so nothing
    has to be agreed on, and the state of a row is the state of the run.

    Args:
        dataset: The rows.
        state: Where the stream stands.
        rank: This rank.
        world_size: Ranks that share the stream.
        window: Samples from which a bin is packed.
        seed: Shuffles the samples.
        num_workers: Processes that decode ahead; 0 decodes in this one.

    Yields:
        This rank's rows.
    """
    lengths = [planned.num_tokens for planned in dataset.samples]
    capacity = dataset.settings.capacity

    def requests() -> Iterator[tuple[tuple[int, ...], StreamState]]:
        now = state
        while True:
            dealt = []
            for _ in range(world_size):
                chosen, now = next_bin(lengths, capacity, now, window=window, seed=seed)
                dealt.append(chosen)
            yield dealt[rank], now

    yield from DataLoader(
        dataset,
        batch_size=None,
        sampler=requests(),
        num_workers=num_workers,
        generator=torch.Generator(),
    )


def fingerprint(samples: Sequence[PlannedSample]) -> str:
    """Sum up which samples there are, in which order and how long."""
    planned = [(each.sample.sample_id, each.num_tokens) for each in samples]
    return hashlib.sha256(repr(planned).encode()).hexdigest()


def count_rows(rows: Sequence[Row]) -> dict[str, float]:
    """Count what this rank's rows hold; all of it is known before the forward pass.

    Args:
        rows: The rows of one optimizer step.

    Returns:
        ``labels`` and ``pairs`` to divide the losses by, and what was loaded:
        ``tokens``, raw ``frames``, ``rows``, ``skipped`` samples.
    """
    return {
        "labels": sum(len(row.plan.labels.rows) for row in rows),
        "pairs": sum(len(row.plan.next_frame.targets.cu_seqlens) - 1 for row in rows),
        "tokens": sum(row.num_tokens for row in rows),
        "frames": sum(row.num_frames for row in rows),
        "rows": len(rows),
        "skipped": sum(len(row.bad) for row in rows),
    }


def _patchify_as_planned(
    frames: UInt8[Tensor, "frames 3 height width"],
    planned: PlannedSample,
    geometry: VisionGeometry,
) -> Float[Tensor, "patches pixels"]:
    """Cut a clip into patches, and check that the file kept what its header said."""
    patches = patchify_clip(frames, geometry, planned.schedule.scales)
    expected = geometry.merge_size**2 * sum(
        prod(grid)
        for span in planned.spans
        if isinstance(span, VideoSpan)
        for grid in encoded_grids(span.grid, span.schedule)
    )
    if len(patches) != expected:
        raise VideoError(
            f"{planned.sample.video} decodes to {len(patches)} patches but its header "
            f"promised {expected}"
        )
    return patches


def _row_length(
    samples: Sequence[Sequence[Span]], settings: ClipSettings
) -> int | None:
    """Choose what a row is padded to; None for no padding."""
    if not settings.row_buckets:
        return None
    return bucket_length(
        sum(map(count_tokens, samples)),
        settings.capacity,
        buckets=settings.row_buckets,
        multiple_of=128,
    )


def _black_clip(geometry: VisionGeometry) -> Float[Tensor, "patches pixels"]:
    """Give the patches of one merged token without content."""
    return torch.zeros(
        geometry.merge_size**2,
        3 * geometry.temporal_patch_size * geometry.patch_size**2,
    )
