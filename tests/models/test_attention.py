"""The attention that transformers knows under the library's name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import Qwen2VLForConditionalGeneration

from fastslow import (
    KeyIntervals,
    Span,
    TextSpan,
    VideoSpan,
    build_layout,
    dense_mask,
    interval_block_mask,
    interval_mask,
    schedule_from_strides,
    to_device,
    visible_intervals,
)
from fastslow.qwen2_vl import ATTENTION_NAME, FastSlowQwen2VL, RowPlan
from fastslow.qwen2_vl.attention import mask_for_device, masked_attention
from fastslow.testing import reference
from fastslow.testing import strategies as fst
from tests.models.samples import assert_near

MakeBackbone = Callable[..., Qwen2VLForConditionalGeneration]

SAMPLES: list[list[Span]] = [
    [
        TextSpan(token_ids=(1, 2, 7)),
        VideoSpan(grid=(4, 5), schedule=schedule_from_strides((1, 2, 1))),
    ],
    [
        VideoSpan(grid=(3, 3), schedule=schedule_from_strides((2, 1, 4))),
        TextSpan(token_ids=(3, 4, 5)),
    ],
]

uncompiled = pytest.mark.filterwarnings("ignore:flex_attention called without")
"""FlexAttention is read slowly but exactly where it is not compiled."""

seeded_rows = st.tuples(fst.ranked_rows(max_run=3), fst.seeds())


def heads(count: int, tokens: int, seed: int = 0, dim: int = 8) -> Tensor:
    return fst.random_values((1, count, tokens, dim), seed=seed, dtype=torch.float64)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Any, **kw: Any) -> Tensor:
    output, weights = masked_attention(nn.Identity(), query, key, value, mask, **kw)
    assert weights is None
    return output


def attend_by_hand(
    query: Tensor, key: Tensor, value: Tensor, pairs: list[list[bool]], scale: float
) -> Tensor:
    """Attend query by query; a query that may read nothing gives zeros."""
    group = query.shape[1] // key.shape[1]
    output = torch.zeros_like(query)
    for head in range(query.shape[1]):
        for row, readable in enumerate(pairs):
            keys = [k for k, allowed in enumerate(readable) if allowed]
            if keys:
                scores = key[0, head // group, keys] @ query[0, head, row] * scale
                values = value[0, head // group, keys]
                output[0, head, row] = scores.softmax(0) @ values
    return output.transpose(1, 2)


# In transformers' own forward, without a layout


@pytest.mark.parametrize("padded_side", [None, "left", "right"])
def test_without_a_layout_it_is_causal_attention(
    make_backbone: MakeBackbone, padded_side: str | None
) -> None:
    ids = torch.randint(10, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids}
    real = torch.ones_like(ids)
    if padded_side is not None:
        real[1, slice(0, 4) if padded_side == "left" else slice(5, 9)] = 0
        inputs["attention_mask"] = real
    expected = make_backbone()(**inputs).logits
    backbone = make_backbone()
    backbone.set_attn_implementation({"text_config": ATTENTION_NAME})
    assert backbone.config.text_config._attn_implementation == ATTENTION_NAME
    assert_near(backbone(**inputs).logits[real > 0], expected[real > 0])


def test_a_trained_model_generates_as_with_sdpa(make_backbone: MakeBackbone) -> None:
    ids = torch.tensor([[11, 12, 13, 14], [15, 16, 17, 18]])
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = make_backbone().generate(ids, **settings)
    backbone = FastSlowQwen2VL(make_backbone()).backbone
    assert torch.equal(backbone.generate(ids, **settings), expected)


# The mask


def dense(visible: KeyIntervals) -> Tensor:
    """Read intervals as the boolean mask that SDPA takes."""
    return dense_mask(interval_mask(visible), len(visible.start))[None, None]


DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]


@pytest.mark.parametrize("device", DEVICES)
def test_mask_for_device__same_pairs(device: str) -> None:
    visible = visible_intervals(
        torch.tensor([0, 1, 1, 2, 0]), torch.tensor([0, 0, 0, 0, 1])
    )
    mask = mask_for_device(to_device(visible, torch.device(device)))
    assert isinstance(mask, BlockMask) == (device == "cuda")
    rule = mask.mask_mod if isinstance(mask, BlockMask) else interval_mask(mask)
    expected = dense_mask(interval_mask(visible), 5)
    assert torch.equal(dense_mask(rule, 5, device=device).cpu(), expected)


@pytest.mark.parametrize(
    ("mask", "given"),
    [(None, "None"), (torch.zeros(1, 1, 5, 5), "torch.float32")],
)
def test_any_other_mask_is_refused(mask: Tensor | None, given: str) -> None:
    states = heads(2, 5)
    with pytest.raises(ValueError) as error:
        attend(states, states, states, mask)
    assert str(error.value) == (
        f"attention_mask is {given}; it must be KeyIntervals, a BlockMask or a boolean "
        "tensor"
    )


def test_a_model_without_a_mask_is_refused(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone()
    backbone.set_attn_implementation({"text_config": ATTENTION_NAME})
    with pytest.raises(ValueError, match="attention_mask is None"):
        backbone.model.language_model(
            input_ids=torch.tensor([[11, 12]]), attention_mask={"full_attention": None}
        )


def test_dropout_under_a_layout_is_refused() -> None:
    states = heads(2, 5)
    visible = visible_intervals(torch.arange(5))
    for mask in (visible, interval_block_mask(visible)):
        with pytest.raises(ValueError) as error:
            attend(states, states, states, mask, dropout=0.1)
        assert str(error.value) == (
            "dropout is 0.1; attention under a layout takes none"
        )


# The values


@uncompiled
@given(seeded_rows, st.sampled_from([(2, 2), (4, 2), (6, 1)]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_every_form_of_the_mask_attends_as_written_in_loops(
    row_and_seed: tuple[fst.Row, int], counts: tuple[int, int], scaled: bool
) -> None:
    (ranks, segments), seed = row_and_seed
    tokens = len(ranks)
    query, key, value = (
        heads(count, tokens, seed=(seed + n) % 2**32)
        for n, count in enumerate((counts[0], counts[1], counts[1]))
    )
    visible = visible_intervals(ranks, segments)
    pairs = reference.visible_pairs(ranks.tolist(), segments.tolist())
    scale = 0.7 if scaled else 8**-0.5
    expected = attend_by_hand(query, key, value, pairs, scale)
    block = interval_block_mask(visible, block_size=4)
    with torch.no_grad():
        for mask in (visible, dense(visible), block):
            kw = {"scaling": scale} if scaled else {}
            found = attend(query, key, value, mask, **kw)
            assert found.is_contiguous()
            assert_near(found, expected)


def test_a_padding_row_gives_zeros_and_no_nan() -> None:
    layout = build_layout(SAMPLES, video_token_id=9, length=68)
    visible = visible_intervals(layout.causal_ranks, layout.segment_ids)
    padding = layout.segment_ids < 0
    assert padding.sum() == 2
    states = [heads(n, 68, seed).requires_grad_() for seed, n in enumerate((4, 2, 2))]
    output = attend(*states, mask_for_device(visible))
    assert (output[0, padding] == 0).all()
    assert output[0, ~padding].all()
    output.square().sum().backward()
    for state in states:
        assert state.grad.isfinite().all()
        assert (state.grad[0, :, padding] == 0).all()
    assert states[2].grad[0, :, ~padding].all()


@uncompiled
def test_a_whole_model_agrees_under_every_form_of_the_mask(
    make_backbone: MakeBackbone, lay: Callable[..., RowPlan]
) -> None:
    plan = lay(SAMPLES, padding=14)
    language_model = FastSlowQwen2VL(make_backbone()).backbone.model.language_model
    block = interval_block_mask(plan.visible, block_size=16)
    assert isinstance(block, BlockMask)
    hidden = []
    for mask in (mask_for_device(plan.visible), dense(plan.visible), block):
        with torch.no_grad():
            output = language_model(
                input_ids=plan.layout.input_ids[None],
                position_ids=plan.layout.position_ids[:, None],
                attention_mask={"full_attention": mask},
                use_cache=False,
            )
        hidden.append(output.last_hidden_state)
    assert hidden[0].isfinite().all()
    assert_near(hidden[0], hidden[1])
    assert_near(hidden[2], hidden[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_what_the_cpu_computes() -> None:
    layout = build_layout(SAMPLES * 3, video_token_id=9, length=256)
    visible = visible_intervals(layout.causal_ranks, layout.segment_ids)
    tokens = len(layout.input_ids)
    states = [
        heads(n, tokens, seed, dim=16).float() for seed, n in enumerate((4, 2, 2))
    ]
    results = []
    for device in ("cpu", "cuda"):
        mask = mask_for_device(to_device(visible, device))
        assert isinstance(mask, BlockMask) == (device == "cuda")
        own = [state.detach().to(device).requires_grad_() for state in states]
        output = attend(*own, mask)
        output.square().sum().backward()
        results.append([output.cpu(), *(state.grad.cpu() for state in own)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
