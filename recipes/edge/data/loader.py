"""From samples to packed rows: every integer is planned before a pixel is decoded."""

import resource
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import active_children
from multiprocessing.util import Finalize
from threading import Thread

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastslow import (
    CostModel,
    Span,
    StreamState,
    bucket_length,
    count_tokens,
    deal_rounds,
    next_bin,
    stream_order,
)
from fastslow.qwen2_vl import (
    VIDEO_TOKEN,
    RowPlan,
    blank_clip,
    patchify_clip,
    plan_row,
)
from recipes.edge.data.archives import ArchiveError, read_media
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.sample_set import PlannedSamples, start_method, unusable
from recipes.edge.data.samples import (
    ClipSettings,
    PlannedClip,
    PlannedSample,
    tower_tokens,
)
from recipes.edge.media.containers import VideoError
from recipes.edge.media.video import decode_frames
from recipes.edge.ranks.stopping import STOPPING

ROW_MULTIPLE = 128
"""Tokens that rows of a few lengths are multiples of, those of a block of a mask."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One packed row, decoded.

    Attributes:
        plan: Its integers.
        patches: The patches of its clips in order.
        sample_ids: The samples in it, in order.
        num_tokens: Tokens of real samples.
        num_frames: Raw frames decoded.
        num_clips: Clips of real samples.
        bad: Samples of its bin that could not be decoded and were left out.
        state: Where the stream stands after the bins of all ranks that were dealt with
            its own; after the last row of a step, those of the step.
    """

    plan: RowPlan
    patches: UInt8[Tensor, "patches pixels"]
    sample_ids: tuple[str, ...]
    num_tokens: int
    num_frames: int
    num_clips: int
    bad: tuple[BadSample, ...]
    state: StreamState

    def pin_memory(self) -> "Row":
        """Put plan and patches into page-locked memory."""
        plan, patches = self.plan.pin_memory(), self.patches.pin_memory()
        return replace(self, plan=plan, patches=patches)


class PackedRows(Dataset[Row]):
    """Rows by bin: index it with the numbers of the samples that share one.

    A sample whose clips cannot be decoded is left out of its row and reported in
    ``bad``. A row without a clip gets a blank one of a single token and no label, so
    that every rank calls the vision tower equally often.
    """

    def __init__(self, samples: PlannedSamples) -> None:
        """Keep what is needed to decode and plan rows."""
        self.samples = samples
        self.settings = samples.settings
        self.video_token_id = samples.tokenizer.get_vocab()[VIDEO_TOKEN]

    def __getitem__(self, request: tuple[tuple[int, ...], StreamState]) -> Row:
        """Decode the clips of one bin, and plan the row of those that decode."""
        chosen, state = request
        clips, kept, bad = list[Tensor](), list[PlannedSample](), list[BadSample]()
        for planned in (self.samples[number] for number in chosen):
            try:
                clips += [self._decode(each) for each in planned.clips]
            except (VideoError, ArchiveError) as error:
                bad.append(unusable(planned.sample, error))
            else:
                kept.append(planned)
        spans: list[tuple[Span, ...]] = [planned.spans for planned in kept]
        shown = [clip for planned in kept for clip in planned.clips]
        if not clips:
            blank, patches = blank_clip(self.settings.family.geometry)
            spans.append((blank,))
            clips.append(patches)
        return Row(
            plan=plan_row(
                spans,
                video_token_id=self.video_token_id,
                family=self.settings.family,
                attention=self.settings.attention,
                pool_mode=self.settings.pool_mode,
                length=_row_length(spans, self.settings),
            ),
            patches=torch.cat(clips),
            sample_ids=tuple(planned.sample.sample_id for planned in kept),
            num_tokens=sum(planned.num_tokens for planned in kept),
            num_frames=sum(len(clip.frame_indices) for clip in shown),
            num_clips=len(shown),
            bad=tuple(bad),
            state=state,
        )

    def _decode(self, planned: PlannedClip) -> Tensor:
        """Decode a clip, and check that the file kept what its header said."""
        file, frames = read_media(
            lambda: planned.clip.file(self.samples.store),
            lambda file: (file, decode_frames(file, planned.frame_indices)),
        )
        geometry = self.settings.family.geometry
        patches = patchify_clip(frames, geometry, planned.span.schedule.scales)
        expected = geometry.merge_size**2 * tower_tokens([planned.span])
        if len(patches) != expected:
            raise VideoError(
                f"{file} decodes to {len(patches)} patches but its header promised "
                f"{expected}"
            )
        return patches


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """How bins are drawn, and which of them are this rank's.

    Attributes:
        rank: This rank.
        world_size: Ranks that share the stream.
        rows: Rows of each rank in one step.
        window: Samples from which a bin is packed.
        seed: Shuffles the samples.
        cost: What a token, a pair and a patch cost.
    """

    rank: int
    world_size: int
    rows: int
    window: int
    seed: int
    cost: CostModel


def stream_rows(
    dataset: PackedRows,
    state: StreamState,
    dealing: Dealing,
    *,
    num_workers: int,
    pin_memory: bool = False,
) -> Generator[Row, None, None]:
    """Deal an endless stream of bins to ranks, and decode this rank's.

    Every rank draws all bins of a step and takes its own, so nothing has to be agreed
    on, and the state after a step is the state of the run. Bins of like cost are
    computed at the same time, see ``deal_rounds``.

    Args:
        dataset: The rows.
        state: Where the stream stands.
        dealing: How bins are drawn and dealt.
        num_workers: Processes that decode ahead; 0 decodes in this one.
        pin_memory: Whether rows wait in page-locked memory, which needs a GPU.

    Returns:
        This rank's rows; closed, they end their workers.
    """
    bins = _deal(dataset.samples, state, dealing)
    return read_rows(dataset, bins, num_workers=num_workers, pin_memory=pin_memory)


def read_rows(
    dataset: PackedRows,
    bins: Iterable[tuple[tuple[int, ...], StreamState]],
    *,
    num_workers: int,
    pin_memory: bool = False,
) -> Generator[Row, None, None]:
    """Decode bins in the order in which they come, ahead of their use.

    Args:
        dataset: The rows.
        bins: Samples of each, and the state that its row carries.
        num_workers: Processes that decode ahead; 0 decodes in this one.
        pin_memory: Whether rows wait in page-locked memory, which needs a GPU.

    Yields:
        A row for each bin.
    """
    # An error's traceback keeps a loader, and so its workers, to the very end, where
    # Python waits for them once its finalizers have run.
    Finalize(None, _end_workers, exitpriority=0)
    _allow_open_files()
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=bins,
        num_workers=num_workers,
        multiprocessing_context=start_method(num_workers),
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
    yield from _outliving_signals(loader)


def _deal(
    samples: PlannedSamples, state: StreamState, dealing: Dealing
) -> Iterator[tuple[tuple[int, ...], StreamState]]:
    """Give this rank's bins, each with the state after all that are dealt with it.

    Archives that are let go are read one after the other, so only bins that are
    computed at the same time are dealt together.
    """
    ahead = _Ahead(samples, dealing.seed)
    rounds = dealing.rows if samples.groups is None else 1
    while True:
        bins = []
        for _ in range(dealing.world_size * rounds):
            chosen, state = next_bin(
                samples.lengths,
                samples.settings.capacity,
                state,
                window=dealing.window,
                seed=dealing.seed,
                groups=samples.groups,
            )
            bins.append(chosen)
        ahead.look(state)
        costs = [samples.cost(chosen, dealing.cost) for chosen in bins]
        for dealt in deal_rounds(costs, dealing.world_size):
            yield bins[dealt[dealing.rank]], state


def _allow_open_files() -> None:
    """Let this process open as many files as the system lets it.

    A worker hands over each tensor of a row as one, fifty for a plan; it is closed when
    the tensor goes. Many systems allow 1,024 until they are asked for more.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some say more than they allow
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _outliving_signals(loader: DataLoader[Row]) -> Iterator[Row]:
    """Start workers that go on when asked to stop, as long as the rank does.

    Terminals, ``torchrun`` and schedulers signal all processes of a rank, which needs
    rows to save. torch's own handler ends a worker, and with it the rank, so they never
    hear of it: what is held back here is so in a worker from its first instruction on.
    A worker ends with its loader or its rank.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_workers() -> None:
    """End the workers of a rank that ends, whatever they are at."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises where a worker dies
    for child in active_children():
        if child.daemon:
            child.kill()


class _Ahead:
    """Fetches the archive that comes next while the one at hand is read."""

    def __init__(self, samples: PlannedSamples, seed: int) -> None:
        self._samples, self._seed = samples, seed
        self._seen: tuple[int, str] | None = None

    def look(self, state: StreamState) -> None:
        """Fetch in the background what follows the archive where the stream stands."""
        groups = self._samples.groups
        if groups is None or state.position == len(groups):
            return
        order = stream_order(
            len(groups), seed=self._seed, epoch=state.epoch, groups=groups
        )
        here = groups[order[state.position]]
        if self._seen == (state.epoch, self._samples.archives[here]):
            return
        self._seen = state.epoch, self._samples.archives[here]
        later = (groups[item] for item in order[state.position :])
        following = next((group for group in later if group != here), None)
        if following is not None and self._samples.archives[following]:
            archive = self._samples.archives[following]
            Thread(target=self._fetch, args=(archive,), daemon=True).start()

    def _fetch(self, archive: str) -> None:
        with suppress(ArchiveError, OSError):  # whoever reads it will say so
            self._samples.store.open(archive)


def count_rows(rows: Sequence[Row]) -> dict[str, float]:
    """Count what this rank's rows hold; all of it is known before the forward pass.

    Args:
        rows: The rows of one optimizer step.

    Returns:
        ``labels`` and ``pairs`` to divide the losses by, and what was loaded:
        ``tokens``, raw ``frames``, ``clips``, ``clip_tokens``, ``rows``,
        ``bad_samples``. A blank clip is no clip.
    """
    return {
        "labels": sum(len(row.plan.labels.rows) for row in rows),
        "pairs": sum(row.plan.next_frame.num_frames for row in rows),
        "tokens": sum(row.num_tokens for row in rows),
        "frames": sum(row.num_frames for row in rows),
        "clips": sum(row.num_clips for row in rows),
        "clip_tokens": sum(len(row.plan.video_rows) for row in rows if row.num_clips),
        "rows": len(rows),
        "bad_samples": sum(len(row.bad) for row in rows),
    }


def padded_length(tokens: int) -> int:
    """Give the length of a row, where rows are padded, that is as full as can be."""
    return -(-tokens // ROW_MULTIPLE) * ROW_MULTIPLE


def _row_length(
    samples: Sequence[Sequence[Span]], settings: ClipSettings
) -> int | None:
    """Choose what a row is padded to; None for no padding.

    Text alone may fill a row to its last token, and the blank clip comes on top.
    """
    if not settings.row_buckets:
        return None
    tokens = sum(map(count_tokens, samples))
    if tokens > settings.capacity:
        return padded_length(tokens)
    return bucket_length(
        tokens,
        settings.capacity,
        buckets=settings.row_buckets,
        multiple_of=ROW_MULTIPLE,
    )
