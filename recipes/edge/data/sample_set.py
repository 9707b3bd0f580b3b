"""All samples of a run: which can be used, and how large they are."""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from fastslow import CostModel, frame_causal_pairs, sample_cost, tokens_per_frame
from fastslow.layouts import Attention
from recipes.edge.data.archives import ArchiveStore
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.index import Sample, SampleIndex
from recipes.edge.data.meanwhile import say_how_many
from recipes.edge.data.samples import (
    ClipSettings,
    PlannedSample,
    plan_sample,
    tower_tokens,
)

FEW = 10_000
"""Samples that are planned before other processes would have started."""

AT_ONCE = 64
"""Samples that a process plans before it sends what it found: to send each alone takes
as long as to plan a few, and one process receives them all."""


@dataclass(frozen=True, kw_only=True)
class PlannedSamples:
    """The samples of a run, each planned when it is asked for.

    Attributes:
        index: What is on disk.
        numbers: The samples there that can be used.
        lengths: Tokens of each of these.
        pairs: Pairs of a query and a key that it may read, of each.
        patches: Patches that enter the tower, of each.
        digests: What each says, summed up: its name and its texts.
        texts: What all samples of the index say, summed up, usable or not.
        groups: Number of the archive that each is in; None where archives stay on disk.
        archives: The archives, by number; files of their own are in none, named "".
        settings: How clips become tokens.
        tokenizer: The model's.
        store: Where archives are.
    """

    index: SampleIndex
    numbers: tuple[int, ...]
    lengths: tuple[int, ...]
    pairs: tuple[int, ...]
    patches: tuple[int, ...]
    digests: tuple[str, ...]
    texts: str
    groups: tuple[int, ...] | None
    archives: tuple[str, ...]
    settings: ClipSettings
    tokenizer: PreTrainedTokenizerBase
    store: ArchiveStore

    def __len__(self) -> int:
        """Count the samples that can be used."""
        return len(self.numbers)

    def __getitem__(self, number: int) -> PlannedSample:
        """Plan a sample."""
        sample = self.index[self.numbers[number]]
        return plan_sample(sample, self.settings, self.tokenizer)

    def samples(self) -> Iterator[Sample]:
        """Read the samples that can be used, without planning them."""
        return (self.index[number] for number in self.numbers)

    def cost(self, numbers: Sequence[int], model: CostModel) -> int:
        """Estimate the work of a row of some samples.

        Args:
            numbers: The samples that share it.
            model: What a token, a pair and a patch cost.

        Returns:
            The cost, in the unit of the model.
        """
        counts = (self.lengths, self.pairs, self.patches)
        tokens, pairs, patches = (sum(each[n] for n in numbers) for each in counts)
        return sample_cost(model, tokens=tokens, pairs=pairs, patches=patches)

    @cached_property
    def fingerprint(self) -> str:
        """Sum up which samples there are, in which order, wherever they lie."""
        return _digest((self.digests, self.lengths))


_FOUND = (
    "numbers",
    "lengths",
    "pairs",
    "patches",
    "digests",
    "texts",
    "groups",
    "archives",
)
"""What of ``PlannedSamples`` takes long to find out."""


def found_out(planned: PlannedSamples) -> dict[str, Any]:
    """Give what planning found out, as JSON knows it."""
    return {name: getattr(planned, name) for name in _FOUND}


def planned_before(
    found: Mapping[str, Any],
    index: SampleIndex,
    settings: ClipSettings,
    tokenizer: PreTrainedTokenizerBase,
    store: ArchiveStore,
) -> PlannedSamples:
    """Give samples as ``plan_samples`` would, from what it once found out.

    Args:
        found: What ``found_out`` gave, lists for tuples.
        index: All samples, as they were.
        settings: How a clip becomes tokens, as it did.
        tokenizer: The model's, as it was.
        store: Where archives are.

    Returns:
        The samples that can be used.
    """
    known: dict[str, Any] = {
        name: tuple(each) if isinstance(each, list) else each
        for name, each in found.items()
    }
    return PlannedSamples(
        index=index, settings=settings, tokenizer=tokenizer, store=store, **known
    )


def plan_samples(
    index: SampleIndex,
    settings: ClipSettings,
    tokenizer: PreTrainedTokenizerBase,
    store: ArchiveStore,
    *,
    num_workers: int = 0,
) -> tuple[PlannedSamples, list[BadSample]]:
    """Find out which samples can be used, and how large they are.

    Args:
        index: All samples.
        settings: How a clip becomes tokens.
        tokenizer: The model's.
        store: Where archives are.
        num_workers: Processes that plan, where there are more than ``FEW`` samples.

    Returns:
        The samples that can be used, and those that cannot, each with its reason.
    """
    sizes, bad, digests = dict[int, _Size](), list[BadSample](), list[str]()
    workers = num_workers if len(index) > FEW else 0
    found = DataLoader(
        _Sizes(index, settings, tokenizer),
        batch_size=AT_ONCE,
        collate_fn=list,
        num_workers=workers,
        multiprocessing_context=start_method(workers),
    )
    entries = say_how_many(
        chain.from_iterable(found), f"of {len(index):,} samples are planned"
    )
    for number, (digest, entry) in enumerate(entries):
        digests.append(digest)
        if isinstance(entry, BadSample):
            bad.append(entry)
        else:
            sizes[number] = entry
    archives = dict.fromkeys(size.archive for size in sizes.values())
    number_of = {archive: number for number, archive in enumerate(archives)}
    groups = tuple(number_of[size.archive] for size in sizes.values())
    usable = PlannedSamples(
        index=index,
        numbers=tuple(sizes),
        lengths=tuple(size.tokens for size in sizes.values()),
        pairs=tuple(size.pairs for size in sizes.values()),
        patches=tuple(size.patches for size in sizes.values()),
        digests=tuple(digests[number] for number in sizes),
        texts=_digest(digests),
        groups=None if store.most is None else groups,
        archives=tuple(archives),
        settings=settings,
        tokenizer=tokenizer,
        store=store,
    )
    return usable, bad


def start_method(num_workers: int) -> str | None:
    """Say how the workers of a loader of samples are started.

    On Linux they are forked, as Python itself does until 3.13. So they are there at
    once, share what is known of the samples instead of copying it, and are this
    process's own: what Python 3.14 puts between dies of a signal to stop.

    Args:
        num_workers: How many there are.

    Returns:
        The name of the method; None for Python's own choice, or without workers.
    """
    return "fork" if num_workers and sys.platform == "linux" else None


class _Size(NamedTuple):
    """How large a sample is, and its first clip's archive."""

    tokens: int
    pairs: int
    patches: int
    archive: str


class _Sizes(Dataset[tuple[str, _Size | BadSample]]):
    """What each sample says, summed up, and its size, or why it has none."""

    def __init__(
        self,
        index: SampleIndex,
        settings: ClipSettings,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._index, self._settings, self._tokenizer = index, settings, tokenizer

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, number: int) -> tuple[str, _Size | BadSample]:
        sample = self._index[number]
        return _digest((sample.sample_id, sample.turns))[:16], self._size_of(sample)

    def _size_of(self, sample: Sample) -> _Size | BadSample:
        settings = self._settings
        try:
            planned = plan_sample(sample, settings, self._tokenizer)
            clip = next(iter(sample.clips), None)
            return _Size(
                tokens=planned.num_tokens,
                pairs=_count_pairs(planned, settings.attention),
                patches=settings.family.geometry.merge_size**2
                * tower_tokens(planned.spans),
                archive=clip.source if clip is not None and clip.name else "",
            )
        except ValueError as error:
            return unusable(sample, error)


def _count_pairs(planned: PlannedSample, attention: Attention) -> int:
    """Count the pairs that may be read in a sample; the order of its runs is free."""
    runs = list[int]()
    if attention == "frame_causal":
        clips = (clip.span for clip in planned.clips)
        runs += (n for c in clips for n in tokens_per_frame(c.grid, c.schedule))
    return frame_causal_pairs([*runs, *[1] * (planned.num_tokens - sum(runs))])


def _digest(known: object) -> str:
    """Sum up what is written of a thing."""
    return hashlib.sha256(repr(known).encode()).hexdigest()


def unusable(sample: Sample, error: Exception) -> BadSample:
    """Name a sample that cannot be used."""
    return BadSample(
        sample_id=sample.sample_id, source=sample.source, reason=str(error)
    )
