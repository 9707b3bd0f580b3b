"""Conversations about a clip in Qwen2-VL's chat format, with only answers trained."""

from collections.abc import Callable, Iterator, Sequence

from fastslow.spans import Span, TextSpan, VideoSpan

VIDEO_PLACEHOLDER = "<video>"
"""Where a conversation's text stands for its clip."""

SYSTEM_PROMPT = "You are a helpful assistant."
"""What the chat templates of Qwen2-VL and Qwen2.5-VL say first."""

VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
"""What stands around a clip, or around each frame of a clip that tells its times."""


def encode_conversation(
    turns: Sequence[tuple[str, str]],
    clip: VideoSpan,
    encode: Callable[[str], Sequence[int]],
    *,
    opening: str = VISION_START,
    system_prompt: str | None = SYSTEM_PROMPT,
) -> tuple[Span, ...]:
    """Turn a conversation into spans.

    An answer is encoded apart from the prompt before it, as generation will see it.
    Trained are the answers and the token that ends each.

    Args:
        turns: ``(role, text)`` pairs; the roles are ``user`` and ``assistant``. One of
            the user's texts holds ``<video>`` once.
        clip: The clip that takes its place.
        encode: Gives a text's token ids, special tokens recognised, none added.
        opening: Text right before the clip, see ``place_clip``.
        system_prompt: What is said first; None for nothing.

    Returns:
        The spans of the sample.

    Raises:
        ValueError: If a role is unknown, or ``<video>`` is not said exactly once, by
            the user.

    Laws:
        text_round_trip: the decoded spans read as the chat template renders the turns
        answers_only: the trained tokens are the answers, each with its end

    Example:
        >>> from fastslow import repeat_strides
        >>> clip = VideoSpan(grid=(2, 2), schedule=repeat_strides(1, (2,)))
        >>> turns = [("user", "<video>What?"), ("assistant", "A cat.")]
        >>> spans = encode_conversation(turns, clip, lambda text: text.encode())
        >>> [bytes(s.token_ids) for s in spans if s != clip and s.trained]
        [b'A cat.<|im_end|>']
    """
    placeholders = sum(text.count(VIDEO_PLACEHOLDER) for _, text in turns)
    if placeholders != 1:
        raise ValueError(
            f"the conversation holds {VIDEO_PLACEHOLDER} {placeholders} times; "
            "it must stand there once"
        )
    if any(VIDEO_PLACEHOLDER in text for role, text in turns if role == "assistant"):
        raise ValueError(
            f"an answer holds {VIDEO_PLACEHOLDER}; only the user shows a clip"
        )
    prompt = ""
    if system_prompt is not None:
        prompt = f"<|im_start|>system\n{system_prompt}<|im_end|>\n"
    return tuple(_spans(prompt, turns, clip, encode, opening))


def _spans(
    prompt: str,
    turns: Sequence[tuple[str, str]],
    clip: VideoSpan,
    encode: Callable[[str], Sequence[int]],
    opening: str,
) -> Iterator[Span]:
    """Yield prompts, the clip and answers in order."""
    for role, text in turns:
        if role == "user":
            prompt += f"<|im_start|>user\n{text}<|im_end|>\n"
        elif role == "assistant":
            prompt += "<|im_start|>assistant\n"
            yield from _prompt_spans(prompt, clip, encode, opening)
            answer = tuple(encode(text + "<|im_end|>"))
            yield TextSpan(token_ids=answer, trained=True)
            prompt = "\n"
        else:
            raise ValueError(f"role is {role!r}; it must be 'user' or 'assistant'")
    yield from _prompt_spans(prompt, clip, encode, opening)


def _prompt_spans(
    prompt: str, clip: VideoSpan, encode: Callable[[str], Sequence[int]], opening: str
) -> Iterator[Span]:
    """Yield untrained text, with the clip where its placeholder stands."""
    before, placeholder, after = prompt.partition(VIDEO_PLACEHOLDER)
    if placeholder:
        yield TextSpan(token_ids=tuple(encode(before + opening)))
        yield clip
        after = VISION_END + after
    else:
        after = before
    yield TextSpan(token_ids=tuple(encode(after)))
