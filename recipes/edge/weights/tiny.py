"""A tiny model and its tokenizer, for runs that start from nothing."""

from collections.abc import Iterable
from itertools import chain

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig

from fastslow.qwen2_vl import VIDEO_TOKEN

END_OF_TURN = "<|im_end|>"
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

VOCABULARY = 512
"""Tokens at most of a run that starts from nothing."""

CHAT_TEMPLATE = """\
{%- if messages[0].role != "system" -%}
{{ "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" }}
{%- endif -%}
{%- for message in messages -%}
{{ "<|im_start|>" + message.role + "\n" }}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == "text" -%}
{{ part.text }}
{%- else -%}
{{ "<|vision_start|><|" + part.type + "_pad|><|vision_end|>" }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ "<|im_end|>\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ "<|im_start|>assistant\n" }}
{%- endif -%}
"""
"""Qwen2-VL's chat format."""

_FORMAT_WORDS = ("system\nYou are a helpful assistant.\n", "user\n", "assistant\n")


def train_tokenizer(
    texts: Iterable[str], *, vocabulary_size: int
) -> PreTrainedTokenizerFast:
    """Learn byte pairs from texts; any other text still encodes, byte by byte.

    Args:
        texts: What the tokenizer should encode well, beside the chat format itself.
        vocabulary_size: Most tokens, special tokens and all 256 bytes included.

    Returns:
        A tokenizer with Qwen2-VL's special tokens and chat format.
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
    tokenizer.train_from_iterator(chain(texts, _FORMAT_WORDS), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=SPECIAL_TOKENS[0],
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


def tiny_config(vocabulary_size: int) -> Qwen2VLConfig:
    """Describe a Qwen2-VL of two layers in language model and tower each.

    It has 0.6 million parameters. Its special tokens are those of ``train_tokenizer``.
    Weights are drawn four times as wide as usual: with the usual width so small a model
    does not learn.

    Args:
        vocabulary_size: Tokens of the tokenizer.
    """
    return Qwen2VLConfig(
        text_config={
            "vocab_size": vocabulary_size,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.08,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": None,
            "eos_token_id": SPECIAL_TOKENS.index(END_OF_TURN),
        },
        vision_config={
            "depth": 2,
            "embed_dim": 64,
            "hidden_size": 128,
            "num_heads": 4,
            "mlp_ratio": 2,
            "initializer_range": 0.08,
        },
        video_token_id=SPECIAL_TOKENS.index(VIDEO_TOKEN),
        image_token_id=SPECIAL_TOKENS.index("<|image_pad|>"),
        vision_start_token_id=SPECIAL_TOKENS.index("<|vision_start|>"),
        vision_end_token_id=SPECIAL_TOKENS.index("<|vision_end|>"),
    )
