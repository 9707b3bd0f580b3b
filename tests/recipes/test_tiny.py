"""The small tokenizer: any text comes back, special tokens are single ids."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from fastslow.qwen2_vl import VIDEO_TOKEN
from recipes.edge.weights.tiny import (
    SPECIAL_TOKENS,
    tiny_config,
    train_tokenizer,
)

TEXTS = ["Which colour is the shape?", "red left", "blue down", "red up"] * 4
TOKENIZER = train_tokenizer(TEXTS, vocabulary_size=320)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


def test_special_tokens_are_single_ids() -> None:
    ids = [TOKENIZER.encode(t, add_special_tokens=False) for t in SPECIAL_TOKENS]
    assert [len(each) for each in ids] == [1] * len(SPECIAL_TOKENS)
    assert len({each[0] for each in ids}) == len(SPECIAL_TOKENS)
    glued = TOKENIZER.encode("red<|im_end|>\n", add_special_tokens=False)
    assert TOKENIZER.get_vocab()["<|im_end|>"] in glued


def test_common_words_are_short() -> None:
    assert len(TOKENIZER.encode("red left", add_special_tokens=False)) < 4
    assert len(TOKENIZER) <= 320


def test_saved_and_trained_again_it_is_the_same(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    text = "<|im_start|>user\nred left, \u00e9lan<|im_end|>"
    expected = TOKENIZER.encode(text, add_special_tokens=False)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.encode(text, add_special_tokens=False) == expected
    again = train_tokenizer(TEXTS, vocabulary_size=320)
    assert again.get_vocab() == TOKENIZER.get_vocab()


def test_a_turn_of_plain_text_is_a_turn_of_one_part() -> None:
    """As Qwen2-VL's own template has it, and most users write it."""
    plain = [{"role": "user", "content": "red left?"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "red left?"}]}]
    texts = [
        TOKENIZER.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        for turns in (plain, parts)
    ]
    assert texts[0] == texts[1]


def test_the_model_knows_the_special_tokens_of_its_tokenizer() -> None:
    vocabulary = TOKENIZER.get_vocab()
    model = Qwen2VLForConditionalGeneration(tiny_config(len(vocabulary)))
    assert model.config.video_token_id == vocabulary[VIDEO_TOKEN]
    assert model.config.image_token_id == vocabulary["<|image_pad|>"]
    assert model.config.vision_start_token_id == vocabulary["<|vision_start|>"]
    assert model.config.vision_end_token_id == vocabulary["<|vision_end|>"]
    assert model.generation_config.eos_token_id == TOKENIZER.eos_token_id
