"""A small byte-level tokenizer, for models that start from nothing."""

from collections.abc import Iterable
from itertools import chain

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fastslow.qwen2_vl.chat import SYSTEM_PROMPT

END_OF_TURN = "<|im_end|>"
VIDEO_TOKEN = "<|video_pad|>"
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    END_OF_TURN,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    VIDEO_TOKEN,
)
"""Qwen2-VL's special tokens, under its own names."""


def train_tokenizer(
    texts: Iterable[str], *, vocabulary_size: int
) -> PreTrainedTokenizerFast:
    """Learn byte pairs from texts; any other text still encodes, byte by byte.

    Args:
        texts: What the tokenizer should encode well, beside the chat format itself.
        vocabulary_size: Most tokens, special tokens and all 256 bytes included.

    Returns:
        A tokenizer with Qwen2-VL's special tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    format_words = (f"system\n{SYSTEM_PROMPT}\n", "user\n", "assistant\n")
    tokenizer.train_from_iterator(chain(texts, format_words), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=SPECIAL_TOKENS[0],
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
    )
