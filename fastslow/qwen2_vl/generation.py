"""Answers: greedy decoding from a packed row of prompts, with a key/value cache.

The prompts are read as in training, all in one packed row under the layout's mask.
Their keys and values are then set side by side, a row for each prompt, and the answers
grow together.
"""

from collections.abc import Collection
from dataclasses import dataclass
from operator import index

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from fastslow._shapes import whole_numbers
from fastslow.masks import interval_mask
from fastslow.qwen2_vl.attention import last_hidden_states
from fastslow.qwen2_vl.model import FastSlowQwen2VL
from fastslow.qwen2_vl.plan import RowPlan


@torch.no_grad()
def generate_answers(
    model: FastSlowQwen2VL,
    patches: UInt8[Tensor, "patches pixels"] | Float[Tensor, "patches pixels"],
    plan: RowPlan,
    *,
    eos_token_id: int | Collection[int],
    max_new_tokens: int,
) -> list[tuple[int, ...]]:
    """Answer every prompt of a packed row with its most likely tokens.

    The cache holds as many tokens for each prompt as for the longest of the row, so
    it stays small where prompts of like length share a row.

    Args:
        model: Whole on one device; call ``model.eval()`` first, or dropout stays on.
        patches: The patches of the row's clips in order, as ``FastSlowQwen2VL`` takes
            them.
        plan: The row's plan, each of its samples a prompt that ends with text, such as
            ``encode_conversation`` gives for a conversation without its last answer. A
            sample without any text, such as a blank clip, is answered with nothing.
        eos_token_id: Token, or tokens, that end an answer.
        max_new_tokens: Tokens of an answer at most, at least 1.

    Returns:
        Token ids of the answer to each sample, in order; the token that ended it is
        left out. Samples without a token at the end of the row leave no trace in it,
        and have none.

    Raises:
        ValueError: If ``max_new_tokens`` is below 1, an end is no token id, or a prompt
            ends with a clip.

    Laws:
        cache_free: equals reading each prompt and its answer so far anew for every
            token
        batch_free: the other prompts of a row change no answer: ``answers(a ++ b) ==
            answers(a) + answers(b)``
        matches_transformers: without pooling and with causal attention, equals
            Qwen2-VL's own ``generate``

    Example:
        >>> from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
        >>> from fastslow import TextSpan
        >>> from fastslow.qwen2_vl import blank_clip, plan_row
        >>> config = Qwen2VLConfig(
        ...     text_config={
        ...         "hidden_size": 16, "num_hidden_layers": 1,
        ...         "num_attention_heads": 2, "num_key_value_heads": 1,
        ...         "rope_parameters": {
        ...             "rope_type": "default", "mrope_section": [1, 1, 2],
        ...         },
        ...     },
        ...     vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16},
        ... )
        >>> model = FastSlowQwen2VL(Qwen2VLForConditionalGeneration(config)).eval()
        >>> clip, patches = blank_clip(model.family.geometry)
        >>> asked = [clip, TextSpan(token_ids=(1, 2))], [TextSpan(token_ids=(3,))]
        >>> plan = plan_row(asked, video_token_id=9)
        >>> answers = generate_answers(
        ...     model, patches, plan, eos_token_id=0, max_new_tokens=3
        ... )
        >>> [len(answer) <= 3 for answer in answers]
        [True, True]
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    try:
        ends: tuple[int, ...] = (index(eos_token_id),)  # type: ignore[arg-type]
    except TypeError:
        ends = whole_numbers("eos_token_id", eos_token_id)  # type: ignore[arg-type]
    prompts = _find_prompts(plan)
    cache = DynamicCache()
    hidden = model.read_prompts(patches, plan, cache)
    _set_apart(cache, prompts)
    scores = model.backbone.lm_head(hidden[prompts.ends])
    stop = torch.tensor(sorted(ends), device=scores.device)
    chosen = list[Tensor]()
    is_done = torch.zeros(len(prompts.ends), dtype=torch.bool, device=scores.device)
    for step in range(max_new_tokens):
        token = scores.argmax(-1)
        chosen.append(torch.where(is_done, -1, token))
        is_done |= torch.isin(token, stop)
        if step + 1 == max_new_tokens or bool(is_done.all()):
            break
        scores = _next_scores(model, token, prompts, cache, step)
    found = iter(torch.stack(chosen, 1).tolist())
    return [_cut(next(found), ends) if asks else () for asks in prompts.asks]


@dataclass(frozen=True, kw_only=True)
class _Prompts:
    """What decoding needs to know of the prompts of a row.

    Attributes:
        asks: Which samples are prompts; those without text are not.
        ends: Row of the last token of each.
        places: Rows of the tokens of each, filled up with its last one.
        reads: Which of these an answer reads: what the last token of its prompt does.
        next_positions: Positions of the token that comes after each.
    """

    asks: list[bool]
    ends: Int[Tensor, " prompts"]
    places: Int[Tensor, "prompts longest"]
    reads: Bool[Tensor, "prompts longest"]
    next_positions: Int[Tensor, "4 prompts"]


def _find_prompts(plan: RowPlan) -> _Prompts:
    """Find the prompts of a row."""
    segments = plan.layout.segment_ids
    lengths = torch.bincount(segments[segments >= 0])
    ends = lengths.cumsum(0) - 1
    is_text = plan.layout.frame_ids < 0
    words = torch.zeros_like(lengths)
    words.index_add_(0, segments.clamp(min=0), (is_text & (segments >= 0)).long())
    asks = words > 0
    if not bool(is_text[ends][asks].all()):
        wrong = int((asks & ~is_text[ends]).nonzero()[0, 0])
        raise ValueError(f"prompt {wrong} ends with a clip; a prompt ends with text")
    ends, lengths = ends[asks], lengths[asks]
    longest = int(lengths.max()) if len(lengths) else 0
    place = torch.arange(longest, device=ends.device)
    places = torch.minimum((ends - lengths + 1)[:, None] + place, ends[:, None])
    head = torch.zeros_like(places)
    seen = interval_mask(plan.visible)(head, head, ends[:, None], places)
    return _Prompts(
        asks=asks.tolist(),
        ends=ends,
        places=places,
        reads=seen & (place < lengths[:, None]),
        next_positions=plan.layout.position_ids[:, ends] + 1,
    )


def _set_apart(cache: DynamicCache, prompts: _Prompts) -> None:
    """Give each prompt a row of its own, filled up at its end, layer by layer."""
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        layer.keys, layer.values = (
            whole[0][:, prompts.places].transpose(0, 1).contiguous()
            for whole in (layer.keys, layer.values)
        )


def _next_scores(
    model: FastSlowQwen2VL,
    token: Tensor,
    prompts: _Prompts,
    cache: DynamicCache,
    step: int,
) -> Tensor:
    """Read the token that each answer has grown by; score the next one."""
    visible = F.pad(prompts.reads, (0, step + 1), value=True)
    language_model = model.backbone.model.language_model
    text = language_model.embed_tokens(token)[:, None]
    positions = (prompts.next_positions + step)[:, :, None]
    hidden = last_hidden_states(
        language_model, text, positions, visible[:, None, None], cache
    )
    scores: Tensor = model.backbone.lm_head(hidden[:, 0])
    return scores


def _cut(row: list[int], ends: Collection[int]) -> tuple[int, ...]:
    """Keep an answer up to the token that ends it."""
    stops = [place for place, token in enumerate(row) if token in ends]
    return tuple(row[: stops[0]] if stops else row)
