"""What a run is trained on: planned on the main rank, before a pixel is decoded."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME

from fastslow.qwen2_vl import Family, family_of
from recipes.config import Config
from recipes.edge.archives import ArchiveStore
from recipes.edge.checkpoint_folders import list_checkpoints
from recipes.edge.clips import make_clips
from recipes.edge.conversations import BadSample
from recipes.edge.data_files import list_subsets
from recipes.edge.distributed import World, processes_here
from recipes.edge.index import Sample, SampleIndex, join_samples, write_index
from recipes.edge.pretrained import digest_model, read_config, read_tokenizer
from recipes.edge.sample_set import PlannedSamples, plan_samples
from recipes.edge.samples import ClipSettings
from recipes.edge.tiny import VOCABULARY, train_tokenizer
from recipes.edge.weights import build_meta_model, find_weights

CACHE = Path(HF_HOME) / "fastslow"
"""Where archives are unzipped and what is in them is written down, for all runs."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the main rank plans for all ranks.

    Attributes:
        checkpoint: Folder of the weights to begin with; None for random ones.
        tokenizer: Folder of the tokenizer: that of the checkpoint, or the run's own.
        model: Digits of configuration and tokenizer, see ``digest_model``.
        train: Samples to train on.
        held_out: Samples to ask afterwards.
        bad: Samples that cannot be used.
        chance: Accuracy of always giving the most common answer of the training set.
    """

    checkpoint: Path | None
    tokenizer: Path
    model: str
    train: PlannedSamples
    held_out: PlannedSamples
    bad: list[BadSample]
    chance: float

    def order(self) -> dict[str, str]:
        """Sum up which samples there are, in which order: the same for a whole run."""
        used = {"train": self.train, "held_out": self.held_out}
        return {name: samples.fingerprint for name, samples in used.items()}

    def summary(self) -> dict[str, Any]:
        """Count and sum up the samples, as this rank reads them from disk.

        ``texts`` are names and texts of all, usable or not, wherever they lie;
        ``contents`` is all that is known of them: where the clips are and their headers
        too, not what the clips show.
        """
        used = {"train": self.train, "held_out": self.held_out}
        return {
            name: {
                "samples": len(samples),
                "order": self.order()[name],
                "texts": samples.texts,
                "contents": samples.index.digest(),
            }
            for name, samples in used.items()
        } | {"unusable": len(self.bad)}


def plan_data(config: Config, world: World) -> Data:
    """Find weights, samples and tokenizer, and plan every token."""
    config.output_dir.mkdir(parents=True, exist_ok=True)
    name = config.model_name_or_path
    checkpoint = None if name is None else find_weights(name)
    if checkpoint is not None:
        build_meta_model(checkpoint)  # weights that do not fit are refused at once
    train_path, held_out_path = _data_paths(config)
    most, run = config.archives_on_disk or None, str(config.output_dir.resolve())
    store = ArchiveStore(CACHE, most=most, run=run)
    index, bad = read_samples(
        train_path, config.data_subsets, store, config.output_dir / "train.arrow"
    )
    held_out_index, held_out_bad = read_samples(
        held_out_path, (), store, config.output_dir / "held_out.arrow"
    )
    folder = checkpoint or _make_tokenizer(config, index)
    tokenizer = read_tokenizer(folder)
    family = Family() if checkpoint is None else family_of(read_config(checkpoint))
    on_gpu = world.device.type == "cuda"
    settings = clip_settings(config, family, pad_rows=on_gpu)
    workers = processes_here(config.dataloader_num_workers)  # other ranks wait
    plan = partial(plan_samples, num_workers=workers)
    train, unplanned = plan(index, settings, tokenizer, store)
    bad += unplanned
    refuse_empty(train_path, train, bad)
    held_out, unplanned = plan(held_out_index, settings, tokenizer, store)
    held_out_bad += unplanned
    if held_out_path is not None:
        refuse_empty(held_out_path, held_out, held_out_bad)
    return Data(
        checkpoint=checkpoint,
        tokenizer=folder,
        model=digest_model(folder),
        train=train,
        held_out=held_out,
        bad=bad + held_out_bad,
        chance=most_common_share(train.samples(), held_out.samples()),
    )


def _data_paths(config: Config) -> tuple[str, str | None]:
    """Name what is trained on and what is held out; make clips where nothing is."""
    if config.data_path is not None:
        return config.data_path, config.eval_data_path
    clips = config.output_dir / "clips"
    make_clips(clips, num_clips=512, held_out=128, seed=config.seed)
    return str(clips / "train.jsonl"), str(clips / "held_out.jsonl")


def read_samples(
    data_path: str | None, parts: Sequence[str], store: ArchiveStore, path: Path
) -> tuple[SampleIndex, list[BadSample]]:
    """Read a dataset, and write its samples to a file that is mapped into memory.

    Args:
        data_path: The dataset; None for one without samples.
        parts: Which of its subsets are taken; none takes all.
        store: Where archives are.
        path: File to write.

    Returns:
        The samples, and the rows that cannot be used.
    """
    bad = list[BadSample]()
    subsets = () if data_path is None else list_subsets(data_path, parts)
    return write_index(path, join_samples(subsets, store, bad.append)), bad


def refuse_empty(
    data_path: str | None, planned: PlannedSamples, bad: Iterable[BadSample]
) -> None:
    """Refuse a dataset without a sample that can be used, and say why that is so."""
    if not len(planned):
        reasons = list(dict.fromkeys(each.reason for each in bad)) or ["it has no row"]
        raise ValueError(
            f"{data_path} has no sample that can be used: {'; '.join(reasons[:3])}"
        )


def most_common_share(train: Iterable[Sample], held_out: Iterable[Sample]) -> float:
    """Tell how often the most common answer of the training set is right.

    What a model reaches that has learnt the answers but looks at no clip.

    Args:
        train: Samples whose answers are counted; of a conversation, all its answers.
        held_out: Samples that are asked.

    Returns:
        Share of the held-out samples, 0 if there are none.
    """
    asked = [_answers(sample) for sample in held_out]
    if not asked:
        return 0.0
    (guess, _), *_ = Counter(map(_answers, train)).most_common(1) or [(b"", 0)]
    return sum(answers == guess for answers in asked) / len(asked)


def _answers(sample: Sample) -> bytes:
    """Sum up everything that the assistant says in a sample, which may be long."""
    said = [turn.text for turn in sample.turns if turn.role == "assistant"]
    return hashlib.blake2b(repr(said).encode(), digest_size=16).digest()


def _make_tokenizer(config: Config, train: Iterable[Sample]) -> Path:
    """Train a tokenizer for a run that begins with nothing; a resumed run has one."""
    folder = config.output_dir / "tokenizer"
    if not list_checkpoints(config.output_dir):
        texts = (turn.text for sample in train for turn in sample.turns)
        train_tokenizer(texts, vocabulary_size=VOCABULARY).save_pretrained(folder)
    return folder


def clip_settings(
    config: Config, family: Family, *, pad_rows: bool = False
) -> ClipSettings:
    """Gather what turns a clip into tokens.

    Args:
        config: The settings of a run.
        family: What the model is.
        pad_rows: Whether rows get one of few lengths, as they should on a GPU.

    Returns:
        The settings of clips.
    """
    geometry = replace(
        family.geometry,
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
        grid_multiple=config.fast_scale,
    )
    return ClipSettings(
        family=replace(family, geometry=geometry),
        max_frames=config.max_frames_num,
        video_fps=config.video_fps,
        add_time_instruction=config.add_time_instruction,
        strategy=config.frame_sampling_strategy,
        slow_ratio=config.slow_frame_ratio,
        patch_stride=config.mm_spatial_pool_stride,
        pool_mode=config.mm_spatial_pool_mode,
        fast_scale=config.fast_scale,
        attention=config.attention,
        capacity=config.tokens_per_row,
        row_buckets=4 if pad_rows else 0,
    )
