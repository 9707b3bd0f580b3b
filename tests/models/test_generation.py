"""Answers with a cache, against reading everything anew and against transformers."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastslow import (
    FrameWindow,
    Span,
    TextSpan,
    VideoSpan,
    count_tokens,
    schedule_from_strides,
)
from fastslow.qwen2_vl import FastSlowQwen2VL, RowPlan, generate_answers
from fastslow.qwen2_vl.model import Backbone

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
END = 3
Lay = Callable[..., RowPlan]


def text(*ids: int) -> TextSpan:
    return TextSpan(token_ids=ids)


def clip(grid: tuple[int, int], *strides: int, **settings: Any) -> VideoSpan:
    return VideoSpan(grid=grid, schedule=schedule_from_strides(strides), **settings)


PROMPTS: list[tuple[Span, ...]] = [
    (text(11, 12), clip((4, 4), 2, 4, 2), text(13)),
    (text(14, 15, 16, 17, 18, 19),),
    (clip((2, 3), 1, 2), text(20, 21), text(22), clip((4, 2), 2), text(23, 24)),
    (text(25), clip((3, 3), 1, times=(4,)), text(26, 27, 28)),
]


def patches_of(plan: RowPlan, sample: int | None = None, seed: int = 0) -> Tensor:
    """Draw patches that depend on the clip alone, not on the row that it is in."""
    drawn = []
    for _, height, width in plan.grid_thw.tolist():
        generator = torch.Generator().manual_seed(seed + 100 * height + width)
        drawn.append(torch.randn(1, height * width, 24, generator=generator))
    runs = zip(drawn, plan.grid_thw[:, 0].tolist(), strict=True)
    return torch.cat([one.expand(n, -1, -1).flatten(0, 1) for one, n in runs]).double()


def read_anew(
    model: FastSlowQwen2VL,
    prompt: Sequence[Span],
    lay: Lay,
    count: int,
    **how: Any,
) -> list[int]:
    """Answer a prompt alone; read it and its answer from the start for every token."""
    answer = list[int]()
    for _ in range(count):
        grown = [*prompt, *[text(*answer)] * bool(answer)]
        asked = TextSpan(token_ids=(0,), trained=True)
        samples = [[*grown, asked], [clip((1, 1), 1)]]
        plan = lay(samples, family=model.family, **how)
        with torch.no_grad():
            output = model(patches_of(plan), plan, read_logits=nn.Identity())
        assert output.logits is not None
        (best,) = output.logits.argmax(-1).tolist()
        if best == END:
            break
        answer.append(best)
    return answer


@pytest.fixture(params=FAMILIES)
def model(
    request: pytest.FixtureRequest, make_family: Callable[..., Backbone]
) -> FastSlowQwen2VL:
    return FastSlowQwen2VL(make_family(request.param, seed=4)).eval()


@pytest.mark.parametrize(
    "how",
    [
        {"attention": "frame_causal"},
        {"attention": "causal"},
        {"window": FrameWindow(frames=1)},
        {"window": FrameWindow(frames=2, keep_text="none")},
        {"window": FrameWindow(frames=1, keep_slow=True)},
    ],
    ids=["frame_causal", "causal", "window", "expiring text", "lasting slow frames"],
)
def test_generate_answers__cache_free(
    model: FastSlowQwen2VL, lay: Lay, how: dict[str, Any]
) -> None:
    plan = lay(PROMPTS, family=model.family, **how)
    found = generate_answers(
        model, patches_of(plan), plan, eos_token_id=[END], max_new_tokens=9
    )
    expected = [read_anew(model, prompt, lay, 9, **how) for prompt in PROMPTS]
    assert [list(answer) for answer in found] == expected
    assert len({tuple(answer) for answer in expected}) > 1


def test_generate_answers__batch_free(model: FastSlowQwen2VL, lay: Lay) -> None:
    def answers(prompts: Sequence[Sequence[Span]], padding: int = 0) -> list[Any]:
        plan = lay(prompts, padding=padding, family=model.family)
        return generate_answers(
            model, patches_of(plan), plan, eos_token_id=[END], max_new_tokens=7
        )

    whole = answers(PROMPTS)
    assert answers(PROMPTS[::-1]) == whole[::-1]
    assert answers(PROMPTS, padding=5) == whole
    assert answers([PROMPTS[0]]) == whole[:1]
    black = (clip((1, 1), 1),)
    assert answers([PROMPTS[1], black, PROMPTS[0]]) == [whole[1], (), whole[0]]


def test_the_cache_of_the_packed_row_does_not_stay(
    model: FastSlowQwen2VL, lay: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, caches = model.read_prompts, list[Any]()

    def spy(patches: Tensor, plan: RowPlan, cache: Any) -> Tensor:
        caches.append(cache)
        return read(patches, plan, cache)

    monkeypatch.setattr(model, "read_prompts", spy)
    plan = lay(PROMPTS, family=model.family)
    generate_answers(model, patches_of(plan), plan, eos_token_id=(), max_new_tokens=3)
    longest = max(map(count_tokens, PROMPTS))
    for layer in caches[0].layers:
        assert layer.keys.shape[::2] == layer.values.shape[::2] == (4, longest + 2)


def test_an_answer_ends_with_its_token(model: FastSlowQwen2VL, lay: Lay) -> None:
    plan = lay(PROMPTS, family=model.family)
    patches = patches_of(plan)
    free = generate_answers(model, patches, plan, eos_token_id=(), max_new_tokens=6)
    assert [len(answer) for answer in free] == [6] * 4
    for end in {token for answer in free for token in answer}:
        found = generate_answers(
            model, patches, plan, eos_token_id=end, max_new_tokens=6
        )
        for cut, whole in zip(found, free, strict=True):
            stop = whole.index(end) if end in whole else 6
            assert cut == whole[:stop]


@pytest.mark.parametrize("seed", range(3))
def test_generate_answers__matches_transformers(
    make_family: Callable[..., Backbone], lay: Lay, seed: int
) -> None:
    """An independent way: its own masks, positions, cache and loop."""
    backbone = make_family("qwen2_vl", seed=seed)
    peer = make_family("qwen2_vl", seed=seed)
    prompt = (text(7), clip((2, 3), 1, 1), text(6, 11, 12))
    plan = lay([prompt], attention="causal", after_video_rule="spatial_axes")
    patches = patches_of(plan)
    ids = plan.layout.input_ids[None]
    whole = peer.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=2 * (ids == peer.config.video_token_id).int(),
        pixel_values_videos=patches,
        video_grid_thw=plan.grid_thw,
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=-1,
    )
    found = generate_answers(
        FastSlowQwen2VL(backbone), patches, plan, eos_token_id=(), max_new_tokens=8
    )
    assert list(found[0]) == whole[0, ids.shape[1] :].tolist()


def test_what_cannot_be_answered_is_refused(model: FastSlowQwen2VL, lay: Lay) -> None:
    plan = lay([(text(1), clip((1, 1), 1), text(2)), (text(1), clip((1, 1), 1))])
    with pytest.raises(ValueError, match=r"^prompt 1 ends with a clip; a prompt ends"):
        generate_answers(
            model, patches_of(plan), plan, eos_token_id=(), max_new_tokens=1
        )
    with pytest.raises(ValueError, match=r"^max_new_tokens is 0; it must"):
        generate_answers(
            model, patches_of(plan), plan, eos_token_id=(), max_new_tokens=0
        )
