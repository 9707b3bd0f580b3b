"""The dry run of a recipe: what the settings ask for, and whether it fits."""

from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerBase

from fastslow import Span, TextSpan, count_tokens
from fastslow.qwen2_vl import family_of, place_clip
from recipes.config import Config, refuse_contradictions
from recipes.data import dataset_of, read_samples, refuse_empty
from recipes.edge.data.archives import CACHE, ArchiveStore
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.index import SampleIndex
from recipes.edge.data.quarantine import refuse_too_many
from recipes.edge.data.sample_set import PlannedSamples, plan_samples
from recipes.edge.data.samples import ClipSettings, clip_settings, schedule_clip
from recipes.edge.estimates.devices import find_device
from recipes.edge.estimates.fitting import first_that_fits, most_changes
from recipes.edge.estimates.forecast import Plan, Samples, at_hand, fits, forecast
from recipes.edge.estimates.summary import summarise
from recipes.edge.weights.pretrained import read_tokenizer
from recipes.edge.weights.published import model_config
from recipes.edge.weights.tiny import train_tokenizer
from recipes.unread import without_effect

LEARNT_WORDS = 16_000
"""Vocabulary of a tokenizer that stands for the model's, where that is not at hand."""

LEARNT_FROM = 50_000
"""Samples at most from which it is learnt, spread over all: more take minutes, and make
no other words."""

CHARACTERS_PER_TOKEN = 3
"""How the text between frames is counted where there are no data."""

MADE_UP_TEXT = (100, 50)
"""Tokens of question and answer of a sample that stands for data."""


def preview(config: Config) -> tuple[str, bool]:
    """Say what a run with these settings takes, and what to change if it is too much.

    Args:
        config: The settings.

    Returns:
        Lines of text, and whether the run fits the GPU.

    Raises:
        ValueError: If settings contradict each other, the GPU is unknown, or the data
            have no sample that can be used, or too many that cannot.
    """
    refuse_contradictions(config)
    shape = model_config(config.model_name_or_path)
    plan = Plan(config=config, shape=shape, device=find_device(config.device))
    settings = clip_settings(config, family_of(shape))
    if config.data_path is None:
        largest = [largest_sample(settings)] * config.packing_window
        about = "no data: as if every clip were as long and large as settings allow"
        return _preview(plan, at_hand(largest, settings.family), about)
    with TemporaryDirectory() as folder:
        planned, bad, counted = plan_dataset(config, settings, Path(folder))
        refuse_dataset(config, planned, bad)
        samples = Samples(
            lengths=planned.lengths,
            patches=planned.patches,
            lay_out=lambda number: planned[number].spans,
        )
        about = f"{len(planned)} samples, {len(bad)} unusable; {counted}"
        return _preview(plan, samples, about)


def _preview(plan: Plan, samples: Samples, about: str) -> tuple[str, bool]:
    """Say what a run over some samples takes."""
    found = forecast(plan, samples)
    notes = "".join(f"{'settings':14} {note}\n" for note in without_effect(plan.config))
    text = f"{notes}{'data':14} {about}\n{summarise(plan, found, samples)}"
    if fits(plan, found.memory):
        return f"{text}\n{'verdict':14} it fits", True
    change = first_that_fits(plan, samples)
    if change is None:
        tried = most_changes(plan, samples)
        return f"{text}\n{'verdict':14} it does not fit, not even with {tried}", False
    flags, memory = change
    verdict = f"it does not fit; {flags} would, with {memory.total / 2**30:.2f} GiB"
    if memory.host:
        verdict += f", and {memory.host / 2**30:.2f} GiB of the host's for each GPU"
    return f"{text}\n{'verdict':14} {verdict}", False


def largest_sample(settings: ClipSettings) -> tuple[Span, ...]:
    """Make up a sample whose clip is as long and as large as the settings allow.

    Raises:
        ValueError: If no row holds it.
    """
    side = isqrt(settings.family.geometry.max_pixels)
    frames = settings.max_frames
    grid, schedule = schedule_clip(frames, (side, side), settings)
    clip = place_clip(
        grid,
        schedule,
        [float(frame) for frame in range(frames)],
        family=settings.family,
        encode=_count_characters,
    )
    question, answer = MADE_UP_TEXT
    sample = (
        TextSpan(token_ids=(0,) * question),
        clip.span,
        TextSpan(token_ids=(0,) * answer, trained=True),
    )
    tokens = count_tokens(sample)
    if tokens > settings.capacity:
        raise ValueError(
            f"a sample with a clip of {frames} frames of {side} x {side} pixels has "
            f"{tokens} tokens but tokens_per_row is {settings.capacity}; raise it, or "
            "lower max_frames_num or max_pixels"
        )
    return sample


def plan_dataset(
    config: Config, settings: ClipSettings, folder: Path
) -> tuple[PlannedSamples, list[BadSample], str]:
    """Plan a dataset without the model's weights.

    Args:
        config: Names the dataset.
        settings: How a clip becomes tokens.
        folder: Where its samples are written.

    Returns:
        The samples that can be used, the others, and how text was counted.
    """
    store, path = ArchiveStore(CACHE), folder / "samples.arrow"
    subsets = dataset_of(config.data_path, config.data_subsets)
    index, bad = read_samples(subsets, store, path)
    tokenizer, about = _tokenizer(config, index)
    workers = config.dataloader_num_workers
    planned, unplanned = plan_samples(
        index, settings, tokenizer, store, num_workers=workers
    )
    return planned, [*bad, *unplanned], about


def refuse_dataset(
    config: Config, planned: PlannedSamples, bad: Sequence[BadSample]
) -> None:
    """Refuse a dataset that a run would not begin with.

    Args:
        config: Names the dataset, and bounds what may be unusable.
        planned: The samples that can be used.
        bad: The others.

    Raises:
        ValueError: If none can be used, or too many cannot.
    """
    refuse_empty(config.data_path, planned, bad)
    refuse_too_many(bad, len(planned) + len(bad), config.max_bad_share)


def _tokenizer(
    config: Config, index: SampleIndex
) -> tuple[PreTrainedTokenizerBase, str]:
    """Give the model's tokenizer, or one that is learnt from the data."""
    folder = config.model_name_or_path
    if folder is not None and Path(folder).is_dir():
        tokenizer = read_tokenizer(Path(folder))
        return tokenizer, "text counted by the model's tokenizer"
    spread = range(0, len(index), -(-len(index) // LEARNT_FROM) or 1)
    texts = (turn.text for number in spread for turn in index[number].turns)
    learnt = train_tokenizer(texts, vocabulary_size=LEARNT_WORDS)
    return learnt, "text counted by a tokenizer learnt from it"


def _count_characters(text: str) -> Sequence[int]:
    """Stand in for a tokenizer."""
    return (0,) * -(-len(text) // CHARACTERS_PER_TOKEN)
