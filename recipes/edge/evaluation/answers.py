"""Answers to packed prompts, in text."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from fastslow import StreamState, to_device
from fastslow.qwen2_vl import FastSlowQwen2VL, generate_answers
from recipes.config import SETTINGS_FILE, Config, load_config
from recipes.edge.data.loader import PackedRows, read_rows
from recipes.edge.data.sample_set import PlannedSamples
from recipes.edge.weights.loading import build_meta_model, load_pretrained, materialize
from recipes.edge.weights.pretrained import read_end_tokens


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says.

    Attributes:
        number: Number of the prompt.
        text: The answer; empty if there is an error.
        error: Why the prompt could not be decoded, if it could not.
    """

    number: int
    text: str
    error: str | None


def find_settings(checkpoint: Path, file: Path | None) -> Config:
    """Give the settings under which clips become tokens.

    Args:
        checkpoint: Folder of the weights.
        file: The settings; None for those of the run that the folder is in.

    Returns:
        The settings.

    Raises:
        ValueError: If the folder is that of a run itself, or one from which a run goes
            on, or in no run and there is no file.
    """
    folder = checkpoint.resolve()
    if not (folder / "config.json").exists():
        _refuse_part_of_run(checkpoint)
    file = file or folder.parent / SETTINGS_FILE
    if not file.exists():
        raise ValueError(
            f"{file} does not exist; --config says how clips become tokens where the "
            "checkpoint is of no run"
        )
    return load_config(file, Config(output_dir=Path("unused")))


def _refuse_part_of_run(checkpoint: Path) -> None:
    """Say which folders can be asked where another one of a run is named."""
    folder = checkpoint.resolve()
    for run in (folder, folder.parent):
        if (run / SETTINGS_FILE).exists():
            models = sorted(each.name for each in run.glob("model-*"))
            raise ValueError(
                f"{checkpoint} has no config.json; what can be asked of the run {run} "
                f"is a model-N, of which it has {', '.join(models) or 'none'}"
            )


def load_model(
    checkpoint: Path, config: Config, device: torch.device
) -> FastSlowQwen2VL:
    """Load a whole model to ask it.

    Args:
        checkpoint: Folder of the weights.
        config: Says in which type a GPU computes; a CPU computes in float32.
        device: Where it computes.

    Returns:
        The model, in evaluation mode, with the end tokens that the checkpoint's
        generation settings name.
    """
    is_cuda = device.type == "cuda"
    dtype = config.parallel.compute_dtype if is_cuda else torch.float32
    model = build_meta_model(checkpoint, dtype=dtype)
    materialize(model, device)
    load_pretrained(checkpoint, model)
    if ends := read_end_tokens(checkpoint):
        model.backbone.generation_config.eos_token_id = ends
    return model.eval()


def find_end_tokens(
    model: FastSlowQwen2VL, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """Find the tokens that end an answer.

    Args:
        model: Its generation settings may name one, several or none.
        tokenizer: It may name one.

    Returns:
        The ids that either names.
    """
    given = model.backbone.generation_config.eos_token_id
    named = given if isinstance(given, list) else [given]
    both = (tokenizer.eos_token_id, *named)
    return frozenset(each for each in both if each is not None)


def pack_prompts(
    lengths: Sequence[int], capacity: int, max_new_tokens: int
) -> tuple[tuple[int, ...], ...]:
    """Pack prompts, longest first, so that a row's cache stays about as long as a row.

    While answers grow, the cache holds as many tokens for each prompt of a row as for
    the longest, so prompts of like length share a row.

    Args:
        lengths: Tokens of each prompt, at most ``capacity``.
        capacity: Tokens of a packed row at most.
        max_new_tokens: Tokens of an answer at most, at least 1.

    Returns:
        Numbers of the prompts that share a row, those of the longest prompts first.

    Raises:
        ValueError: If ``max_new_tokens`` is below 1, or a prompt does not fit a row.

    Laws:
        partition: every prompt lies in exactly one row
        sorted: no prompt is longer than one before it, in its row or an earlier one
        bound: a row's cache is no longer than that of one prompt that fills a row:
            ``len(row) * (longest + max_new_tokens) <= capacity + max_new_tokens``
        full: the next prompt would break the bound of the row before its own

    Example:
        >>> pack_prompts([2, 60, 2, 30, 2], 64, max_new_tokens=4)
        ((1,), (3, 0), (2, 4))
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if max(lengths, default=0) > capacity:
        raise ValueError(f"a prompt has {max(lengths)} tokens; a row holds {capacity}")
    order = sorted(range(len(lengths)), key=lambda each: -lengths[each])
    rows, start = list[tuple[int, ...]](), 0
    while start < len(order):
        longest = lengths[order[start]]
        count = (capacity + max_new_tokens) // (longest + max_new_tokens)
        rows.append(tuple(order[start : start + count]))
        start += count
    return tuple(rows)


def answer_prompts(
    model: FastSlowQwen2VL,
    prompts: PlannedSamples,
    *,
    max_new_tokens: int,
    stop_texts: Collection[str] = (),
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> Iterator[Answer]:
    """Answer prompts row by row, without the tokens of the chat format.

    Args:
        model: The model.
        prompts: Conversations that end with a question.
        max_new_tokens: Tokens of an answer at most.
        stop_texts: An answer ends before the first of these, too.
        rank: This process, of those that share the rows.
        world_size: Processes that share the rows.
        num_workers: Processes that decode ahead; 0 decodes in this one.

    Yields:
        An answer for each prompt of this rank's rows, see ``pack_prompts``.
    """
    bins = pack_prompts(prompts.lengths, prompts.settings.capacity, max_new_tokens)
    tokenizer = prompts.tokenizer
    mine = bins[rank::world_size]
    device, ends = model.backbone.device, find_end_tokens(model, tokenizer)
    rows = read_rows(
        PackedRows(prompts),
        [(chosen, StreamState()) for chosen in mine],
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    for chosen, row in zip(mine, rows, strict=True):
        failed = {sample.source: sample.reason for sample in row.bad}
        ids = generate_answers(
            model,
            row.patches.to(device, non_blocking=True),
            to_device(row.plan, device),
            eos_token_id=ends,
            max_new_tokens=max_new_tokens,
        )
        texts = (tokenizer.decode(list(each), skip_special_tokens=True) for each in ids)
        for number in chosen:
            error = failed.get(prompts.index[prompts.numbers[number]].source)
            text = "" if error else str(next(texts))
            stops = [text.find(stop) for stop in stop_texts if stop in text]
            cut = text[: min(stops, default=len(text))]
            yield Answer(number=number, text=cut, error=error)
