"""Ask a trained model questions about clips, and score its answers.

    python recipes/evaluate.py runs/qwen2vl_tiny/model-320 DATA
    torchrun --standalone --nproc-per-node 8 recipes/evaluate.py CHECKPOINT DATA
    python recipes/evaluate.py --help

CHECKPOINT is a ``model-N`` folder of a run, whose settings are used, or any checkpoint
of transformers, for which ``--config`` says how clips become tokens. DATA is what
``--data-path`` of a recipe takes; the last answer of every row is asked for. Each rank
holds the whole model.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Annotated, Any

import tyro

from fastslow.qwen2_vl import FastSlowQwen2VL
from fastslow.qwen2_vl.chat import PLACEHOLDER
from recipes.command_line import given_words
from recipes.config import Config
from recipes.data import refuse_empty
from recipes.edge.data.archives import CACHE, ArchiveStore
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.data_files import list_subsets
from recipes.edge.data.index import Sample, join_samples, write_index
from recipes.edge.data.sample_set import PlannedSamples, plan_samples
from recipes.edge.data.samples import clip_settings
from recipes.edge.evaluation.answers import answer_prompts, find_settings, load_model
from recipes.edge.evaluation.scoring import score_answer, summarise_scores
from recipes.edge.files.provenance import code_versions
from recipes.edge.files.publishing import write_whole
from recipes.edge.ranks.distributed import (
    World,
    broadcast_from_main,
    gather_from_ranks,
    process_group,
    processes_here,
    refusals_in_words,
)
from recipes.edge.weights.loading import build_meta_model, find_weights
from recipes.edge.weights.pretrained import read_tokenizer
from recipes.settings.mappings import settings_as_json

MOST_LINES = 5
"""Rows that could not be asked and are named in the table."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to ask, and whom."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Folder of weights for transformers, or their name on the hub."""
    data: Annotated[str, tyro.conf.Positional]
    """A file, a folder, or a name on the hub, as --data-path of a recipe."""
    subsets: tuple[str, ...] = ()
    """Parts of the data to take, as SUBSET or SUBSET/SPLIT; without it, all."""
    config: Path | None = None
    """YAML file of settings; by default those of the run that the checkpoint is of."""
    max_new_tokens: int = 64
    """Tokens of an answer at most."""
    output: Path = Path("evaluation.json")
    """File of all answers and scores."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked.

    Attributes:
        prompts: Conversations without their last answer.
        references: The answers that were left out, of every prompt on disk.
        bad: Rows that cannot be asked.
    """

    prompts: PlannedSamples
    references: tuple[str, ...]
    bad: tuple[BadSample, ...]


def main() -> None:
    """Ask all questions, and write answers and scores."""
    options = tyro.cli(Options, args=given_words(), description=__doc__)
    with refusals_in_words():
        evaluate(options)


def evaluate(options: Options) -> None:
    """Ask, and write; every rank calls this.

    Raises:
        MainRankError: If options, checkpoint, settings or data cannot be used.
    """

    def find() -> tuple[Path, Config]:
        refuse_options(options)
        checkpoint = find_weights(options.checkpoint)
        config = find_settings(checkpoint, options.config)
        build_meta_model(checkpoint)  # weights that do not fit are refused at once
        return checkpoint, config

    with process_group() as world, ExitStack() as kept:
        checkpoint, config = broadcast_from_main(find, world)
        model = load_model(checkpoint, config, world.device)

        def plan() -> Questions:
            beside = TemporaryDirectory(  # all nodes see it, and ranks map its file
                prefix=".questions-",
                dir=options.output.parent,
                ignore_cleanup_errors=True,
            )
            folder = Path(kept.enter_context(beside))
            return plan_questions(options, checkpoint, config, model, folder)

        questions = broadcast_from_main(plan, world)
        workers = config.dataloader_num_workers
        answers = list(ask(model, questions, options.max_new_tokens, world, workers))
        ranks = gather_from_ranks(answers, world)
        if world.is_main:
            found = evaluation(questions, list(chain(*ranks)))
            about = {
                "checkpoint": str(checkpoint),
                "data": options.data,
                "subsets": options.subsets,
                "max_new_tokens": options.max_new_tokens,
                "versions": code_versions(),
                "settings": settings_as_json(config),
            }
            sys.stdout.write(f"{table(found)}\n")  # first: a full disk leaves it
            write_whole(options.output, json.dumps(about | found, indent=1) + "\n")
            sys.stdout.write(f"written to {options.output}\n")


def refuse_options(options: Options) -> None:
    """Refuse at once what would fail after hours of answers.

    Raises:
        ValueError: If answers may have no token, or cannot be written.
    """
    if options.max_new_tokens < 1:
        raise ValueError(
            f"max_new_tokens is {options.max_new_tokens}; it must be at least 1"
        )
    file = options.output
    if file.exists() and not file.is_file():
        raise ValueError(
            f"output is {file}, which is no file; all answers go into one file"
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise ValueError(
            f"output is {file} but {file.parent} cannot take a file ({error.strerror})"
        ) from error


def plan_questions(
    options: Options,
    checkpoint: Path,
    config: Config,
    model: FastSlowQwen2VL,
    folder: Path,
) -> Questions:
    """Plan every question as in training, but for its answer."""
    store, bad = ArchiveStore(CACHE), list[BadSample]()
    references = list[str]()

    def prompts() -> Iterator[Sample]:
        subsets = list_subsets(options.data, options.subsets)
        for sample in join_samples(subsets, store, bad.append):
            turns = list(sample.turns)
            while turns[-1].role != "assistant":
                turns.pop()
            references.append(turns.pop().text)
            places = sum(len(PLACEHOLDER.findall(turn.text)) for turn in turns)
            yield replace(sample, turns=tuple(turns), clips=sample.clips[:places])

    index = write_index(folder / "prompts.arrow", prompts())
    tokenizer = read_tokenizer(checkpoint)
    on_gpu = model.backbone.device.type == "cuda"
    settings = clip_settings(config, model.family, pad_rows=on_gpu)
    workers = processes_here(config.dataloader_num_workers)  # other ranks wait
    planned, unplanned = plan_samples(
        index, settings, tokenizer, store, num_workers=workers
    )
    refuse_empty(options.data, planned, (*bad, *unplanned))
    return Questions(
        prompts=planned, references=tuple(references), bad=(*bad, *unplanned)
    )


def ask(
    model: FastSlowQwen2VL,
    questions: Questions,
    max_new_tokens: int,
    world: World,
    num_workers: int,
) -> Iterator[dict[str, Any]]:
    """Answer this rank's share of the questions, and score the answers."""
    prompts = questions.prompts
    answers = answer_prompts(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        rank=world.rank,
        world_size=world.size,
        num_workers=num_workers,
    )
    for answer in answers:
        number = prompts.numbers[answer.number]
        sample, reference = prompts.index[number], questions.references[number]
        question = sample.turns[-1].text
        score = score_answer(question, reference, answer.text)
        if answer.error:
            score = replace(score, correct=False, f1=0.0)
        yield {
            "sample_id": sample.sample_id,
            "source": sample.source,
            "category": sample.category,
            "question": question,
            "reference": reference,
            "answer": answer.text,
            "error": answer.error,
            **asdict(score),
        }


def evaluation(questions: Questions, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up the answers of all ranks, in the order of the data."""
    numbers = questions.prompts.index
    order = {numbers[n].source: n for n in questions.prompts.numbers}
    answers.sort(key=lambda each: order[each["source"]])
    return {
        "scores": summarise_scores(answers),
        "not_asked": [asdict(sample) for sample in questions.bad],
        "answers": answers,
    }


def table(found: dict[str, Any]) -> str:
    """Write the scores as a table."""
    lines = ["| category | kind | questions | accuracy | F1 |", "|---|---|--:|--:|--:|"]
    for row in found["scores"]:
        lines.append(
            f"| {row['category']} | {row['kind']} | {row['count']} | "
            f"{row['accuracy']:.3f} | {row['f1']:.3f} |"
        )
    wrong = sum(each["error"] is not None for each in found["answers"])
    lines.append(
        f"\n{wrong} clips could not be decoded and count as wrong; "
        f"{len(found['not_asked'])} rows could not be asked"
    )
    for each in found["not_asked"][:MOST_LINES]:
        lines.append(f"  {each['source']}: {each['reason']}")
    if (more := len(found["not_asked"]) - MOST_LINES) > 0:
        lines.append(f"  and {more} more, which the file names")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
