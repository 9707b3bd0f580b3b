"""Samples: from the row of a data file to tokens, where each stands, whom each sees."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.oracles.whole_step.clips import Clip, load_picture, load_video
from tests.oracles.whole_step.options import Options, Window
from tests.oracles.whole_step.schedules import Bounds

ROLES = {"human": "user", "gpt": "assistant"}
START, END = "<|vision_start|>", "<|vision_end|>"
PLACEHOLDER = re.compile("(<video>|<image>)")
SHOWN = re.compile(r"<\|vision_start\|><\|(?:video|image)_pad\|><\|vision_end\|>")


@dataclass(frozen=True, kw_only=True)
class Token:
    """A word, or a window of a pooled frame of a clip."""

    word: int = 0
    is_trained: bool = False
    clip: int | None = None
    frame: int = 0
    window: int = 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a row of a data file becomes."""

    tokens: list[Token]
    clips: list[Clip]


def read_sample(
    row: Mapping[str, Any], folder: Path, options: Options, config: Any, tokenizer: Any
) -> Sample:
    turns = _turns(row)
    names = {kind: iter(_named(row, kind)) for kind in ("video", "image")}
    kinds = [w[1:-1] for _, text in turns for w in PLACEHOLDER.findall(text)]
    load = {"video": load_video, "image": load_picture}
    clips = [load[k](folder / next(names[k]), options, config) for k in kinds]
    said = iter([clip.about for clip in clips])
    messages = [
        {"role": role, "content": list(_parts(text, said))} for role, text in turns
    ]
    tokens, shown = list[Token](), iter(enumerate(clips))
    for text, is_trained in _pieces(messages, tokenizer):
        if is_trained:
            tokens += _words(text, tokenizer, is_trained=True)
        else:
            tokens += _prompt(text, shown, tokenizer)
    return Sample(tokens=tokens, clips=clips)


def _named(row: Mapping[str, Any], kind: str) -> list[str]:
    names = row.get(kind) or row.get(f"{kind}s") or []
    return [names] if isinstance(names, str) else names


def _turns(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give roles and texts, with a placeholder for everything that is shown."""
    if "messages" in row:
        turns = [(turn["role"], turn["content"]) for turn in row["messages"]]
    else:
        turns = [(turn["from"], turn["value"]) for turn in row["conversations"]]
    turns = [(ROLES.get(role, role), text) for role, text in turns]
    videos, images = _named(row, "video"), _named(row, "image")
    if not any(PLACEHOLDER.search(text) for _, text in turns):
        first = next(n for n, (role, _) in enumerate(turns) if role == "user")
        shown = "<video>\n" * len(videos) + "<image>\n" * len(images)
        turns[first] = "user", shown + turns[first][1]
    if not images:
        turns = [(role, text.replace("<image>", "<video>")) for role, text in turns]
    return turns


def _parts(text: str, said: Iterator[str]) -> Iterator[dict[str, str]]:
    pieces = PLACEHOLDER.split(text)
    for place, piece in enumerate(pieces):
        if place % 2 == 0:
            yield {"type": "text", "text": piece}
            continue
        about, after = next(said), "".join(pieces[place + 1 :])
        if about and after and not after[0].isspace():
            about += "\n"
        yield {"type": piece[1:-1]}
        yield {"type": "text", "text": about}


def _pieces(messages: list[Any], tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """Cut what the chat template writes into prompts and answers."""

    def render(count: int, *, is_prompt: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            messages[:count], tokenize=False, add_generation_prompt=is_prompt
        )
        return text

    done = 0
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = render(number, is_prompt=True)
            answer = render(number + 1, is_prompt=False)
            stop = answer.rindex(tokenizer.eos_token) + len(tokenizer.eos_token)
            yield prompt[done:], False
            yield answer[len(prompt) : stop], True
            done = stop
    is_asked = messages[-1]["role"] != "assistant"
    yield render(len(messages), is_prompt=is_asked)[done:], False


def _words(text: str, tokenizer: Any, *, is_trained: bool = False) -> list[Token]:
    words = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [Token(word=word, is_trained=is_trained) for word in words]


def _prompt(
    text: str, shown: Iterator[tuple[int, Clip]], tokenizer: Any
) -> Iterator[Token]:
    written, *following = SHOWN.split(text)
    for after in following:
        number, clip = next(shown)
        for place, frame in enumerate(clip.frames):
            if place == 0 or clip.told:
                told = clip.told[place] if clip.told else ""
                before = END if place else written
                yield from _words(before + told + START, tokenizer)
            for window in frame.kept:
                yield Token(clip=number, frame=place, window=window)
        written = END + after
    yield from _words(written, tokenizer)


def middle(bounds: Bounds) -> int:
    return (bounds[0] + bounds[1] - 1) // 2


def positions(sample: Sample, after_video_rule: str) -> Tensor:
    """Place every token on the axes of time, height and width."""
    places, start = list[tuple[int, int, int]](), 0

    def timed(token: Token) -> tuple[int | None, int | None]:
        told = token.clip is not None and sample.clips[token.clip].told
        return token.clip, token.frame if told else None

    for (number, _), group in groupby(sample.tokens, timed):
        tokens = list(group)
        if number is None:
            places += [(start + n,) * 3 for n in range(len(tokens))]
            start += len(tokens)
            continue
        clip = sample.clips[number]
        for token in tokens:
            frame = clip.frames[token.frame]
            time = clip.times[middle((frame.start, frame.stop))]
            rows, columns = frame.windows[token.window]
            places.append((start + time, start + middle(rows), start + middle(columns)))
        longest = clip.times[-1] + 1 if after_video_rule == "all_axes" else 0
        start += max(longest, *clip.grid)
    return torch.tensor(places).T


def visible(sample: Sample, options: Options) -> Tensor:
    """Tell for every token which tokens it sees."""
    ranks, clocks = _ranks(sample, options), _clocks(sample)
    kept, horizon = [True] * len(sample.tokens), 0
    if options.window:
        kept, horizon = _kept(sample, options.window), options.window.frames
    pairs = [
        [
            other <= rank and (keep or clock - begun < horizon)
            for other, begun, keep in zip(ranks, clocks, kept, strict=True)
        ]
        for rank, clock in zip(ranks, clocks, strict=True)
    ]
    return torch.tensor(pairs)


def _ranks(sample: Sample, options: Options) -> list[int]:
    """Number words and frames in order; without frames, every token."""
    ranks, rank, before = list[int](), -1, None
    for token in sample.tokens:
        is_word = token.clip is None or options.attention == "causal"
        frame = None if is_word else (token.clip, token.frame)
        rank += frame is None or frame != before
        before = frame
        ranks.append(rank)
    return ranks


def _clocks(sample: Sample) -> list[int]:
    """Count the frames of the sample's clips that have begun."""
    clocks, clock = list[int](), 0
    for token in sample.tokens:
        if token.clip is not None:
            earlier = sum(len(clip.scales) for clip in sample.clips[: token.clip])
            clock = 1 + earlier + sample.clips[token.clip].frames[token.frame].start
        clocks.append(clock)
    return clocks


def _kept(sample: Sample, window: Window) -> list[bool]:
    kept, is_prefix = list[bool](), True
    for token in sample.tokens:
        if token.clip is None:
            text = window.keep_text
            kept.append(text == "all" or (text == "prefix" and is_prefix))
        else:
            is_prefix = False
            is_slow = sample.clips[token.clip].frames[token.frame].is_slow
            kept.append(window.keep_slow and is_slow)
    return kept
