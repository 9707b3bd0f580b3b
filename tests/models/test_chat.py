"""Conversations read as Qwen2-VL's chat template renders them."""

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from fastslow import Span, TextSpan, VideoSpan, schedule_from_strides
from fastslow.qwen2_vl import VIDEO_TOKEN, PlacedClip, encode_conversation
from recipes.edge.weights.tiny import train_tokenizer

CLIP = VideoSpan(grid=(2, 3), schedule=schedule_from_strides((1, 2)))
PLACED = PlacedClip(span=CLIP, opening="<|vision_start|>")
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
    first = [("user", draw(texts))] if before else []
    return [*first, *before, asked, *after]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["What moves?", "A red square.", "Which way?", "Left.", "Right."]
    return train_tokenizer(words, vocabulary_size=330)


def encode(
    tokenizer: PreTrainedTokenizerFast, turns: Turns, clips: int = 1
) -> tuple[Span, ...]:
    return encode_conversation(turns, [PLACED] * clips, tokenizer)


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
    rendered = tokenizer.apply_chat_template(
        messages(turns),
        tokenize=False,
        add_generation_prompt=turns[-1][0] != "assistant",
    )
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
def test_examples_read_as_the_template_renders(
    tokenizer: PreTrainedTokenizerFast, turns: Turns
) -> None:
    check_text(tokenizer, turns)


@given(turns=conversations())
@settings(max_examples=60, deadline=None)
def test_encode_conversation__text_round_trip(
    tokenizer: PreTrainedTokenizerFast, turns: Turns
) -> None:
    check_text(tokenizer, turns)


@pytest.mark.parametrize("turns", EXAMPLES)
def test_examples_train_the_answers(
    tokenizer: PreTrainedTokenizerFast, turns: Turns
) -> None:
    check_answers(tokenizer, turns)


@given(turns=conversations())
@settings(max_examples=60, deadline=None)
@example(turns=[("user", "<video>"), ("assistant", "a"), ("assistant", "b")])
def test_encode_conversation__answers_only(
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


def test_several_clips_and_none(tokenizer: PreTrainedTokenizerFast) -> None:
    wide = PlacedClip(span=replace(CLIP, grid=(4, 4)), opening="<|vision_start|>")
    turns = [
        ("system", "Be brief."),
        ("user", "<video> and <image>?"),
        ("assistant", "Both."),
        ("user", "<video>"),
    ]
    spans = encode_conversation(turns, [PLACED, wide, PLACED], tokenizer)
    found = [span for span in spans if isinstance(span, VideoSpan)]
    assert found == [CLIP, wide.span, CLIP]
    text = tokenizer.decode(ids(tokenizer, spans))
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")
    assert text.endswith("<|vision_end|><|im_end|>\n<|im_start|>assistant\n")
    alone = encode(tokenizer, [("user", "Hello."), ("assistant", "Hi!")], clips=0)
    assert not any(isinstance(span, VideoSpan) for span in alone)


def test_a_template_that_trims_is_followed(tokenizer: PreTrainedTokenizerFast) -> None:
    trims = copy.deepcopy(tokenizer)
    trims.chat_template = trims.chat_template.replace("part.text", "part.text | trim")
    spans = encode_conversation(
        [("user", " Hello. "), ("assistant", " Hi! ")], [], trims
    )
    (answer,) = [s for s in spans if isinstance(s, TextSpan) and s.trained]
    assert tokenizer.decode(answer.token_ids) == "Hi!<|im_end|>"


def test_a_template_that_rewrites_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    counts = copy.deepcopy(tokenizer)
    counts.chat_template = "{{ messages | length }}" + str(counts.chat_template)
    with pytest.raises(ValueError, match=r"^the chat template changes earlier text"):
        encode_conversation([("user", "Hello."), ("assistant", "Hi!")], [], counts)


def test_a_template_that_ends_no_answer_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|vision_end|>"
    with pytest.raises(ValueError) as error:
        encode_conversation([("user", "Hello."), ("assistant", "Hi!")], [], other)
    assert str(error.value) == (
        "the chat template ends no answer with '<|vision_end|>', the tokenizer's "
        "end-of-sequence token"
    )
    asked = [("user", "Hello.")]
    assert encode_conversation(asked, [], other) == encode(tokenizer, asked, clips=0)


@pytest.mark.parametrize(
    ("turns", "count"),
    [
        ([], 0),
        ([("user", "What?"), ("assistant", "This.")], 0),
        ([("user", "<video><video>")], 2),
        ([("user", "<video>"), ("user", "<image>")], 2),
    ],
)
def test_every_clip_needs_a_place(
    tokenizer: PreTrainedTokenizerFast, turns: Turns, count: int
) -> None:
    said = f"^the conversation has {count} places for clips but 1 clips; each clip"
    with pytest.raises(ValueError, match=said):
        encode(tokenizer, turns)


@pytest.mark.parametrize("role", ["tool", "human", ""])
def test_an_unknown_role_is_refused(
    tokenizer: PreTrainedTokenizerFast, role: str
) -> None:
    said = f"^role is '{role}'; it must be 'system', 'user' or 'assistant'$"
    with pytest.raises(ValueError, match=said):
        encode(tokenizer, [("user", "<video>"), (role, "Be brief.")])


@pytest.mark.parametrize("before", [[], [("system", "Be brief.")]])
def test_an_answer_needs_a_prompt(
    tokenizer: PreTrainedTokenizerFast, before: list[tuple[str, str]]
) -> None:
    said = "^the first turn is the assistant's; an answer needs a prompt$"
    with pytest.raises(ValueError, match=said):
        encode(tokenizer, [*before, ("assistant", "This."), ("user", "<video>")])


def test_a_clip_in_an_answer_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    said = r"^a turn of the assistant holds \['video'\]; only the user shows clips$"
    with pytest.raises(ValueError, match=said):
        encode(tokenizer, [("user", "What?"), ("assistant", "<video>This.")])


def test_special_tokens_in_a_text_are_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    said = r"^a turn of the user holds '<\|im_end\|>', which the chat format reserves$"
    with pytest.raises(ValueError, match=said):
        encode(tokenizer, [("user", "<video>No<|im_end|>"), ("assistant", "Yes.")])


def test_a_token_that_becomes_special_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    grown, asked = copy.deepcopy(tokenizer), [("user", "No<|new|>")]
    assert encode(grown, asked, clips=0)
    grown.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    with pytest.raises(ValueError, match=r"^a turn of the user holds '<\|new\|>', "):
        encode(grown, asked, clips=0)
