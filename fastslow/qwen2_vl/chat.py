"""Conversations about a clip in Qwen2-VL's chat format, with only answers trained."""

from collections.abc import Callable, Iterator, Sequence

from fastslow.spans import Span, TextSpan, VideoSpan

VIDEO_PLACEHOLDER = "<video>"
"""Where a conversation's text stands for its clip."""

SYSTEM_PROMPT = "You are a helpful assistant."
"""What Qwen2-VL's chat template says first."""


def encode_conversation(
    turns: Sequence[tuple[str, str]],
    clip: VideoSpan,
    encode: Callable[[str], Sequence[int]],
) -> tuple[Span, ...]:
    """Turn a conversation into spans.

    An answer is encoded apart from the prompt before it, as generation will see it.
    Trained are the answers and the token that ends each.

    Args:
        turns: ``(role, text)`` pairs; the roles are ``user`` and ``assistant``. One of
            the user's texts holds ``<video>`` once.
        clip: The clip that takes its place.
        encode: Gives a text's token ids, special tokens recognised, none added.

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
    return tuple(_spans(turns, clip, encode))


def _spans(
    turns: Sequence[tuple[str, str]],
    clip: VideoSpan,
    encode: Callable[[str], Sequence[int]],
) -> Iterator[Span]:
    """Yield prompts, the clip and answers in order."""
    prompt = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
    for role, text in turns:
        if role == "user":
            prompt += f"<|im_start|>user\n{text}<|im_end|>\n"
        elif role == "assistant":
            yield from _prompt_spans(prompt + "<|im_start|>assistant\n", clip, encode)
            answer = tuple(encode(text + "<|im_end|>"))
            yield TextSpan(token_ids=answer, trained=True)
            prompt = "\n"
        else:
            raise ValueError(f"role is {role!r}; it must be 'user' or 'assistant'")
    yield from _prompt_spans(prompt, clip, encode)


def _prompt_spans(
    prompt: str, clip: VideoSpan, encode: Callable[[str], Sequence[int]]
) -> Iterator[Span]:
    """Yield untrained text, with the clip where its placeholder stands."""
    before, placeholder, after = prompt.partition(VIDEO_PLACEHOLDER)
    if placeholder:
        yield TextSpan(token_ids=tuple(encode(before + "<|vision_start|>")))
        yield clip
        after = "<|vision_end|>" + after
    else:
        after = before
    yield TextSpan(token_ids=tuple(encode(after)))
