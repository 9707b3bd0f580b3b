"""Conversations read as Qwen2-VL's chat template renders them."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from fastslow import Span, TextSpan, VideoSpan, schedule_from_strides
from fastslow.qwen2_vl import encode_conversation
from recipes.edge.tiny import VIDEO_TOKEN, train_tokenizer

TEMPLATE = """
{%- if messages[0].role != "system" -%}
{{ "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n" }}
{%- endif -%}
{%- for message in messages -%}
{{ "<|im_start|>" + message.role + "\\n" }}
{%- for part in message.content -%}
{%- if part.type == "video" -%}
{{ "<|vision_start|><|video_pad|><|vision_end|>" }}
{%- else -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{{ "<|im_end|>\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ "<|im_start|>assistant\\n" }}
{%- endif -%}
"""

CLIP = VideoSpan(grid=(2, 3), schedule=schedule_from_strides((1, 2)))
Turns = list[tuple[str, str]]

EXAMPLES: list[Turns] = [
    [("user", "<video>What moves?"), ("assistant", "A red square.")],
    [("user", "What moves?\n<video>\n"), ("assistant", " it \u00e9t\u00e9 \u4f60 ")],
    [
        ("user", "Hello."),
        ("assistant", "Hi!"),
        ("user", "Look: <video> Which way?"),
        ("assistant", "Left."),
        ("user", "Sure?"),
        ("assistant", ""),
    ],
    [("user", "<video>"), ("assistant", "A."), ("user", "And then?")],
    [("user", "<video>One."), ("user", "Two."), ("assistant", "Three.")],
]

texts = st.text(max_size=12).filter(lambda text: "<" not in text)


@st.composite
def conversations(draw: st.DrawFn) -> Turns:
    """Draw turns of any roles, one of the user's with a clip in it."""
    roles = st.sampled_from(("user", "assistant"))
    before = draw(st.lists(st.tuples(roles, texts), max_size=3))
    after = draw(st.lists(st.tuples(roles, texts), max_size=3))
    asked = ("user", draw(texts) + "<video>" + draw(texts))
    return [*before, asked, *after]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["What moves?", "A red square.", "Which way?", "Left.", "Right."]
    trained = train_tokenizer(words, vocabulary_size=330)
    trained.chat_template = TEMPLATE
    return trained


def encode(tokenizer: PreTrainedTokenizerFast, turns: Turns) -> tuple[Span, ...]:
    return encode_conversation(
        turns, CLIP, lambda text: tokenizer.encode(text, add_special_tokens=False)
    )


def messages(turns: Turns) -> list[dict[str, Any]]:
    """Write turns as a chat template takes them."""
    written = []
    for role, text in turns:
        before, *after = text.split("<video>")
        content = [{"type": "text", "text": before}]
        for part in after:
            content += [{"type": "video"}, {"type": "text", "text": part}]
        written.append({"role": role, "content": content})
    return written


def ids(tokenizer: PreTrainedTokenizerFast, spans: tuple[Span, ...]) -> list[int]:
    """Write a sample with one token for its clip, as a chat template does."""
    video = [tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)]
    return [
        number
        for span in spans
        for number in (span.token_ids if isinstance(span, TextSpan) else video)
    ]


def check_text(tokenizer: PreTrainedTokenizerFast, turns: Turns) -> None:
    spans = encode(tokenizer, turns)
    rendered = tokenizer.apply_chat_template(messages(turns), tokenize=False)
    assert tokenizer.decode(ids(tokenizer, spans)) == rendered
    assert [span for span in spans if isinstance(span, VideoSpan)] == [CLIP]


def check_answers(tokenizer: PreTrainedTokenizerFast, turns: Turns) -> None:
    spans = encode(tokenizer, turns)
    answers = [turn for turn, (role, _) in enumerate(turns) if role == "assistant"]
    trained = [n for n, s in enumerate(spans) if isinstance(s, TextSpan) and s.trained]
    assert len(trained) == len(answers)
    for turn, place in zip(answers, trained, strict=True):
        said = tokenizer.decode(spans[place].token_ids)
        assert said == turns[turn][1] + "<|im_end|>"
        prompt = tokenizer.apply_chat_template(
            messages(turns[:turn]), tokenize=False, add_generation_prompt=True
        )
        seen = tokenizer.encode(prompt, add_special_tokens=False)
        before = ids(tokenizer, spans[:place])
        assert tokenizer.decode(before) == prompt
        if turn == answers[0]:
            assert before == seen


@pytest.mark.parametrize("turns", EXAMPLES)
def test_text_round_trip(tokenizer: PreTrainedTokenizerFast, turns: Turns) -> None:
    check_text(tokenizer, turns)


@given(turns=conversations())
@settings(max_examples=60, deadline=None)
def test_text_round_trip_of_any_conversation(
    tokenizer: PreTrainedTokenizerFast, turns: Turns
) -> None:
    check_text(tokenizer, turns)


@pytest.mark.parametrize("turns", EXAMPLES)
def test_answers_only(tokenizer: PreTrainedTokenizerFast, turns: Turns) -> None:
    check_answers(tokenizer, turns)


@given(turns=conversations().filter(lambda turns: turns[0][0] == "user"))
@settings(max_examples=60, deadline=None)
@example(turns=[("user", "<video>"), ("assistant", "a"), ("assistant", "b")])
def test_answers_only_of_any_conversation(
    tokenizer: PreTrainedTokenizerFast, turns: Turns
) -> None:
    check_answers(tokenizer, turns)


def test_special_tokens_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    before, clip, after, answer, end = encode(tokenizer, EXAMPLES[0])
    named = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("im_start", "im_end", "vision_start", "vision_end")
    }
    assert clip is CLIP
    assert before.token_ids[0] == named["im_start"]
    assert before.token_ids[-1] == named["vision_start"]
    assert after.token_ids[0] == named["vision_end"]
    assert answer.token_ids[-1] == named["im_end"]
    assert tokenizer.decode(end.token_ids) == "\n"
    assert [s.trained for s in (before, after, answer, end)] == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("turns", "count"),
    [
        ([], 0),
        ([("user", "What?"), ("assistant", "This.")], 0),
        ([("user", "<video><video>")], 2),
        ([("user", "<video>"), ("user", "<video>")], 2),
    ],
)
def test_other_than_one_clip_is_refused(
    tokenizer: PreTrainedTokenizerFast, turns: Turns, count: int
) -> None:
    said = f"^the conversation holds <video> {count} times; it must stand there once$"
    with pytest.raises(ValueError, match=said):
        encode(tokenizer, turns)


@pytest.mark.parametrize("role", ["system", "human", ""])
def test_an_unknown_role_is_refused(
    tokenizer: PreTrainedTokenizerFast, role: str
) -> None:
    said = f"^role is '{role}'; it must be 'user' or 'assistant'$"
    with pytest.raises(ValueError, match=said):
        encode(tokenizer, [("user", "<video>"), (role, "Be brief.")])


def test_a_clip_in_an_answer_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    said = "^an answer holds <video>; only the user shows a clip$"
    with pytest.raises(ValueError, match=said):
        encode(tokenizer, [("user", "What?"), ("assistant", "<video>This.")])
