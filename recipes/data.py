"""What a run is trained on: planned on the main rank, before a pixel is decoded."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from fastslow.qwen2_vl import Family, family_of
from recipes.config import Config
from recipes.edge.checkpoints.folders import list_checkpoints
from recipes.edge.data.archives import CACHE, ArchiveStore
from recipes.edge.data.clips import make_clips
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.data_files import Subset, list_subsets, state_of
from recipes.edge.data.headers import reader
from recipes.edge.data.index import (
    Sample,
    SampleIndex,
    digest_of,
    join_samples,
    write_index,
)
from recipes.edge.data.sample_set import (
    PlannedSamples,
    found_out,
    plan_samples,
    planned_before,
)
from recipes.edge.data.samples import ClipSettings, clip_settings
from recipes.edge.files.memos import Memo
from recipes.edge.ranks.distributed import World, processes_here
from recipes.edge.weights.loading import build_meta_model, find_weights
from recipes.edge.weights.pretrained import digest_model, read_config, read_tokenizer
from recipes.edge.weights.tiny import VOCABULARY, train_tokenizer


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the main rank plans for all ranks.

    Attributes:
        checkpoint: Folder of the weights to begin with; None for random ones.
        tokenizer: Folder of the tokenizer: that of the checkpoint, or the run's own.
        model: Digits of configuration and tokenizer, see ``digest_model``.
        train: Samples to train on.
        held_out: Samples to ask, in between and at the end.
        bad: Samples that cannot be used.
    """

    checkpoint: Path | None
    tokenizer: Path
    model: str
    train: PlannedSamples
    held_out: PlannedSamples
    bad: list[BadSample]

    def order(self) -> dict[str, str]:
        """Sum up which samples there are, in which order: the same for a whole run."""
        used = {"train": self.train, "held_out": self.held_out}
        return {name: samples.fingerprint for name, samples in used.items()}

    @cached_property
    def chance(self) -> float:
        """How often the most common answer of the training set is right."""
        return most_common_share(self.train.samples(), self.held_out.samples())

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
    """Find weights, samples and tokenizer, and plan every token.

    A run that goes on takes its samples as it read and planned them, as long as data
    files, settings and code are the same. A clip that has gone since is a bad sample
    when its turn comes, as it would have been had the run not ended.
    """
    config.output_dir.mkdir(parents=True, exist_ok=True)
    name = config.model_name_or_path
    checkpoint = None if name is None else find_weights(name)
    if checkpoint is not None:
        build_meta_model(checkpoint)  # weights that do not fit are refused at once
    train_path, held_out_path = _data_paths(config)
    most, run = config.archives_on_disk or None, str(config.output_dir.resolve())
    store = ArchiveStore(CACHE, most=most, run=run)
    parts = () if config.data_path is None else config.data_subsets
    train_rows = _read("train", train_path, parts, config, store)
    held_out_rows = _read("held_out", held_out_path, (), config, store)
    folder = checkpoint or _make_tokenizer(config, train_rows.index)
    model = digest_model(folder)
    family = Family() if checkpoint is None else family_of(read_config(checkpoint))
    plan = partial(
        _plan,
        config=config,
        settings=clip_settings(config, family, pad_rows=world.device.type == "cuda"),
        tokenizer=read_tokenizer(folder),
        model=model,
        store=store,
    )
    train, bad = plan(train_rows)
    refuse_empty(train_path, train, bad)
    held_out, held_out_bad = plan(held_out_rows)
    if held_out_path is not None:
        refuse_empty(held_out_path, held_out, held_out_bad)
    return Data(
        checkpoint=checkpoint,
        tokenizer=folder,
        model=model,
        train=train,
        held_out=held_out,
        bad=bad + held_out_bad,
    )


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """What was read of a dataset: samples on disk, summed up, and bad rows."""

    index: SampleIndex
    digest: str
    bad: list[BadSample]


def _read(
    name: str,
    data_path: str | None,
    parts: Sequence[str],
    config: Config,
    store: ArchiveStore,
) -> _Rows:
    """Read a dataset into a file of the run, or take what the run has read of it."""
    file = config.output_dir / f"{name}.arrow"
    subsets = dataset_of(data_path, parts)
    memo = Memo(file.with_suffix(".read.json"), (state_of(subsets), reader()))
    known = _recall(memo, config)
    if known is not None and file.exists():
        digest, bad = known
        if digest_of(file) == digest:
            return _Rows(index=SampleIndex(file), digest=digest, bad=bad)
    index, bad = read_samples(subsets, store, file)
    digest = index.digest()
    _keep(memo, digest, bad)
    return _Rows(index=index, digest=digest, bad=bad)


def _plan(
    rows: _Rows,
    *,
    config: Config,
    settings: ClipSettings,
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    store: ArchiveStore,
) -> tuple[PlannedSamples, list[BadSample]]:
    """Plan samples, or take them as the run has planned them; name all bad ones."""
    file = rows.index.path.with_suffix(".planned.json")
    memo = Memo(file, (rows.digest, settings, model, store.most is None))
    known = _recall(memo, config)
    given = rows.index, settings, tokenizer, store
    if known is not None:
        usable, bad = known
        return planned_before(usable, *given), rows.bad + bad
    workers = processes_here(config.dataloader_num_workers)  # other ranks wait
    planned, bad = plan_samples(*given, num_workers=workers)
    _keep(memo, found_out(planned), bad)
    return planned, rows.bad + bad


def _keep(memo: Memo, usable: Any, bad: Iterable[BadSample]) -> None:
    """Write down what was found out of samples that can be used, and which cannot."""
    memo.keep({"usable": usable, "bad": [asdict(each) for each in bad]})


def _recall(memo: Memo, config: Config) -> tuple[Any, list[BadSample]] | None:
    """Read what ``_keep`` wrote, where a run has a checkpoint to go on from."""
    known = memo.recall() if list_checkpoints(config.output_dir) else None
    if known is None:
        return None
    return known["usable"], [BadSample(**each) for each in known["bad"]]


def _data_paths(config: Config) -> tuple[str, str | None]:
    """Name what is trained on and what is held out; make clips where nothing is."""
    if config.data_path is not None:
        return config.data_path, config.eval_data_path
    clips = config.output_dir / "clips"
    make_clips(clips, num_clips=512, held_out=128, seed=config.seed)
    return str(clips / "train.jsonl"), str(clips / "held_out.jsonl")


def dataset_of(data_path: str | None, parts: Sequence[str] = ()) -> list[Subset]:
    """Find the files of a dataset, or of those of its parts that are taken.

    Args:
        data_path: The dataset; None for one without samples.
        parts: Which of its subsets are taken; none takes all.

    Returns:
        The subsets.
    """
    return [] if data_path is None else list_subsets(data_path, parts)


def read_samples(
    subsets: Sequence[Subset], store: ArchiveStore, path: Path
) -> tuple[SampleIndex, list[BadSample]]:
    """Read a dataset, and write its samples to a file that is mapped into memory.

    Args:
        subsets: Where its rows are; nowhere, for one without samples.
        store: Where archives are.
        path: File to write.

    Returns:
        The samples, and the rows that cannot be used.
    """
    bad = list[BadSample]()
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
