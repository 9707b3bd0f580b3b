"""Conversations about clips, in the model's chat format and with answers trained."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from fastslow.qwen2_vl.timing import VISION_END, VISION_START, PlacedClip
from fastslow.spans import Span, TextSpan

PLACEHOLDER = re.compile("<(video|image)>")
"""Where a conversation's text stands for a clip or a picture."""

_RENDERED = re.compile(
    re.escape(VISION_START) + r"<\|(?:video|image)_pad\|>" + re.escape(VISION_END)
)


def encode_conversation(
    turns: Sequence[tuple[str, str]],
    clips: Sequence[PlacedClip],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Span, ...]:
    """Turn a conversation into spans.

    The tokenizer's chat template writes the text. An answer is what the template adds
    to the prompt for it; it is encoded apart, as generation will see it. Trained are
    the answers and the token that ends each. After a last turn that is not an answer,
    the prompt for one follows.

    Args:
        turns: ``(role, text)`` pairs; the roles are ``user``, ``assistant`` and
            ``system``. The user's texts hold ``<video>`` or ``<image>`` for each clip.
        clips: What takes those places, in order; a picture is a clip of one frame.
        tokenizer: The model's, with its chat template; its end-of-sequence token ends
            an answer.

    Returns:
        The spans of the sample.

    Raises:
        ValueError: If a role is unknown, an answer comes first, a text holds a special
            token, there are not as many placeholders as clips, an answer has one, the
            template changes what it has written when turns are added, or ends no answer
            with the end-of-sequence token.

    Laws:
        text_round_trip: the decoded spans read as the chat template renders the turns:
            ``decode(encode_conversation(turns)) == apply_chat_template(turns)``
        answers_only: the trained tokens are the answers, each with its end

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = {"Who": 0, "runs?": 1, "A": 2, "cat.": 3, "<end>": 4}
        >>> plain = Tokenizer(models.WordLevel(words, unk_token="<end>"))
        >>> plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> tokenizer = PreTrainedTokenizerFast(
        ...     tokenizer_object=plain, eos_token="<end>"
        ... )
        >>> tokenizer.chat_template = (
        ...     "{% for turn in messages %}{{ turn.content[0].text + ' ' }}"
        ...     "{% if turn.role == 'assistant' %}{{ eos_token }}{% endif %}"
        ...     "{% endfor %}"
        ... )
        >>> turns = [("user", "Who runs?"), ("assistant", "A cat.")]
        >>> for span in encode_conversation(turns, [], tokenizer):
        ...     print(span.token_ids, span.trained)
        (0, 1) False
        (2, 3, 4) True
    """
    if next((role for role, _ in turns if role != "system"), None) == "assistant":
        raise ValueError("the first turn is the assistant's; an answer needs a prompt")
    messages = [_message(role, text, tokenizer) for role, text in turns]
    found = sum(len(PLACEHOLDER.findall(text)) for _, text in turns)
    if found != len(clips):
        raise ValueError(
            f"the conversation has {found} places for clips but {len(clips)} clips; "
            "each clip needs one"
        )
    waiting = iter(clips)
    spans, written = list[Span](), ""
    for prompt, answered in _exchanges(messages, tokenizer):
        if not (prompt.startswith(written) and answered.startswith(prompt)):
            raise ValueError(
                "the chat template changes earlier text when turns are added; answers "
                "cannot be told from prompts"
            )
        spans += _prompt_spans(prompt[len(written) :], waiting, tokenizer)
        answer, end, _ = answered[len(prompt) :].partition(str(tokenizer.eos_token))
        if answered != prompt:
            if not end:
                raise ValueError(
                    f"the chat template ends no answer with {tokenizer.eos_token!r}, "
                    "the tokenizer's end-of-sequence token"
                )
            ids = _encode(answer + end, tokenizer)
            spans.append(TextSpan(token_ids=ids, trained=True))
        written = prompt + answer + end
    if turns and turns[-1][0] == "assistant":
        spans += _prompt_spans(answered[len(written) :], waiting, tokenizer)
    return tuple(spans)


def _message(
    role: str, text: str, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Check a turn, and write it as a chat template takes it."""
    if role not in {"system", "user", "assistant"}:
        raise ValueError(
            f"role is {role!r}; it must be 'system', 'user' or 'assistant'"
        )
    special = next((t for t in tokenizer.all_special_tokens if t in text), None)
    if special is not None:
        raise ValueError(
            f"a turn of the {role} holds {special!r}, which the chat format reserves"
        )
    if role != "user" and PLACEHOLDER.search(text):
        raise ValueError(
            f"a turn of the {role} holds {PLACEHOLDER.findall(text)}; only the user "
            "shows clips"
        )
    pieces = PLACEHOLDER.split(text)  # text, kind, text, kind, ..., text
    content = [
        {"type": piece} if number % 2 else {"type": "text", "text": piece}
        for number, piece in enumerate(pieces)
        if piece or len(pieces) == 1
    ]
    return {"role": role, "content": content}


def _exchanges(
    messages: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, str]]:
    """Yield the text up to each answer, and the text with it; without one, twice."""

    def render(count: int, *, ask: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(messages[:count]), tokenize=False, add_generation_prompt=ask
            )
        )

    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            yield render(number, ask=True), render(number + 1, ask=False)
    if messages and messages[-1]["role"] != "assistant":
        prompt = render(len(messages), ask=True)
        yield prompt, prompt


def _prompt_spans(
    prompt: str, clips: Iterator[PlacedClip], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Span]:
    """Yield untrained text, with clips where the template put them."""
    after = ""
    *befores, rest = _RENDERED.split(prompt)
    for before in befores:
        clip = next(clips)
        text = after + before + clip.opening
        yield TextSpan(token_ids=_encode(text, tokenizer))
        yield clip.span
        after = VISION_END
    if after + rest:
        yield TextSpan(token_ids=_encode(after + rest, tokenizer))


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Give a text's token ids, special tokens recognised, none added."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))
