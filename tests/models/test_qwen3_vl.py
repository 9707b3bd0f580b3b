"""Qwen3-VL: frames that tell their times, and features for deeper layers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.video_utils import VideoMetadata

from fastslow import (
    IGNORED_LABEL,
    FrameSchedule,
    Grid,
    Span,
    TextSpan,
    VideoSpan,
    build_layout,
    dense_mask,
    interval_mask,
    kernel_schedule,
    repeat_strides,
    schedule_from_strides,
    temporal_patches,
)
from fastslow.qwen2_vl import (
    VIDEO_TOKEN,
    Family,
    FastSlowQwen2VL,
    RowPlan,
    encode_conversation,
    frame_times,
    place_clip,
    place_image,
    plan_row,
    timestamp_texts,
)
from fastslow.qwen2_vl.model import Backbone
from fastslow.testing import strategies as fst
from recipes.edge.media.video import sample_frame_indices
from recipes.edge.weights.tiny import train_tokenizer
from tests.models.samples import assert_near

VIDEO_TOKEN_ID = 9
START, END = "<|vision_start|>", "<|vision_end|>"
QWEN3 = Family(table_side=4, tells_time=True)

MakeFamily = Callable[..., Backbone]
Lay = Callable[..., RowPlan]
MakePatches = Callable[..., Tensor]
ReadEveryRow = Callable[[RowPlan], RowPlan]


def encode(words: str) -> list[int]:
    """Stand for a tokenizer: two special tokens, and a number for any other text."""
    ids = list[int]()
    while words:
        special = next((mark for mark in (START, END) if words.startswith(mark)), None)
        if special is None:
            ids.append(10 + ord(words[0]) % 30)
            words = words[1:]
        else:
            ids.append({START: 7, END: 6}[special])
            words = words.removeprefix(special)
    return ids


def sample(
    clips: Sequence[tuple[Grid, Sequence[int]]], seconds: float = 0.5
) -> list[Span]:
    """Lay out clips as Qwen3-VL does, with text around them."""
    spans = list[Span]()
    for grid, strides in clips:
        times = [seconds * n for n in range(2 * len(strides))]
        schedule = schedule_from_strides(strides)
        clip = place_clip(grid, schedule, times, family=QWEN3, encode=encode)
        spans += [
            TextSpan(token_ids=tuple(encode("Look" + clip.opening))),
            clip.span,
            TextSpan(token_ids=tuple(encode(END + "What?"))),
            TextSpan(token_ids=(12, 13, 14), trained=True),
        ]
    return spans


def inputs_of(plan: RowPlan, patches: Tensor) -> dict[str, Any]:
    """Give an unpooled row of one sample as transformers takes it."""
    ids = plan.layout.input_ids
    return {
        "input_ids": ids[None],
        "mm_token_type_ids": 2 * (ids == VIDEO_TOKEN_ID).int()[None],
        "pixel_values_videos": patches,
        "video_grid_thw": plan.grid_thw,
        "use_cache": False,
    }


# Time as text


@given(
    st.integers(1, 9), st.sampled_from((1.0, 2.0, 24.0, 29.97)), st.sampled_from((1, 2))
)
@example(5, 24.0, 2)
def test_timestamp_texts__matches_transformers(
    raw: int, fps: float, patch: int
) -> None:
    indices = [3 * n for n in range(raw)]
    frames = temporal_patches(raw, temporal_patch_size=patch)
    texts = timestamp_texts(
        repeat_strides(frames, (1,)),
        [index / fps for index in indices],
        temporal_patch_size=patch,
    )
    processor = Qwen3VLProcessor.__new__(Qwen3VLProcessor)
    times = processor._calculate_timestamps(indices, fps, patch)
    expected = END.join(f"<{time:.1f} seconds>{START}" for time in times)
    assert "".join(texts) == expected
    assert len(texts) == frames


@given(
    fst.grids(max_side=5),
    fst.schedules(),
    st.sampled_from((Family(), Family(tokens_per_second=2), QWEN3)),
)
def test_place_clip__same_frames(
    grid: Grid, schedule: FrameSchedule, family: Family
) -> None:
    seconds = [0.4 * n for n in range(2 * schedule.num_frames)]
    clip = place_clip(grid, schedule, seconds, family=family, encode=encode)
    assert (clip.span.grid, clip.span.schedule) == (grid, schedule)


@given(fst.grids(max_side=5))
def test_place_image__whole(grid: Grid) -> None:
    picture = place_image(grid)
    assert picture.opening == START
    row = build_layout([[picture.span]], video_token_id=VIDEO_TOKEN_ID)
    assert row.frame_ids.tolist() == [0] * (grid[0] * grid[1])


def test_a_conversation_reads_as_the_processor_writes_it() -> None:
    tokenizer = train_tokenizer(["What? A cat."], vocabulary_size=330)
    schedule = schedule_from_strides((1, 2))

    def tokenize(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    clip = place_clip((2, 3), schedule, [0.0, 0.5, 1.0], family=QWEN3, encode=tokenize)
    turns = [("system", "Hi."), ("user", "<video>What?"), ("assistant", "A cat.")]
    read = ""
    for span in encode_conversation(turns, [clip], tokenizer):
        if isinstance(span, TextSpan):
            read += tokenizer.decode(span.token_ids)
        else:
            assert span == clip.span
            read += "FRAME"
            read += "".join(tokenizer.decode(t) + "FRAME" for t in span.between)
    assert read == (
        "<|im_start|>system\nHi.<|im_end|>\n"
        f"<|im_start|>user\n<0.2 seconds>{START}FRAME{END}<1.0 seconds>{START}FRAME"
        f"{END}What?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
    )


@pytest.mark.parametrize("asked", ["<video>What?", "Look: <video> \n<video"])
def test_a_prompt_is_tokenized_as_a_whole(asked: str) -> None:
    tokenizer = train_tokenizer(["What moves? seconds>\n<1"], vocabulary_size=330)

    def tokenize(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    clip = place_clip(
        (1, 1), repeat_strides(3, (1,)), range(6), family=QWEN3, encode=tokenize
    )
    turns = [("user", asked), ("assistant", "A cat.")]
    spans = encode_conversation(turns, [clip], tokenizer)
    told = "".join(
        f"<{time} seconds>{START}{VIDEO_TOKEN}{END}" for time in (0.5, 2.5, 4.5)
    )
    before, after = asked.split("<video>")
    prompt = tokenize(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{before}{told}{after}<|im_end|>\n<|im_start|>assistant\n"
    )
    video = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
    layout = build_layout([spans], video_token_id=video)
    assert layout.input_ids[: len(prompt)].tolist() == prompt
    assert layout.labels[len(prompt)] != IGNORED_LABEL


AS_TEXT = (
    "a clip of 3 frames, {} when pooled, does not have them at time 0 with text "
    "between, where this family reads the time; place_clip lays it out so"
)
AS_TIMES = (
    "a clip of 3 frames has no times, by which this family places them, or has text "
    "between them; place_clip lays it out with times alone"
)
TEXTS = ((), ())


@pytest.mark.parametrize(
    ("family", "clip", "said"),
    [
        (QWEN3, {}, AS_TEXT.format(3)),
        (QWEN3, {"times": (0, 0, 0)}, AS_TEXT.format(3)),
        (QWEN3, {"times": (0, 1, 2), "between": TEXTS}, AS_TEXT.format(3)),
        (QWEN3, {"schedule": kernel_schedule(3, (3, 1, 1))}, AS_TEXT.format(1)),
        (Family(tokens_per_second=2), {}, AS_TIMES),
        (Family(tokens_per_second=2), {"between": TEXTS}, AS_TIMES),
        (
            Family(tokens_per_second=2),
            {"times": (0, 0, 0), "between": TEXTS},
            AS_TIMES,
        ),
    ],
)
def test_a_clip_has_to_tell_the_time_as_its_family_does(
    family: Family, clip: dict[str, Any], said: str
) -> None:
    def plan(**changes: Any) -> RowPlan:
        own: dict[str, Any] = {"schedule": schedule_from_strides((1, 1, 1))}
        span = VideoSpan(grid=(1, 1), **own | changes)
        return plan_row([[span]], video_token_id=VIDEO_TOKEN_ID, family=family)

    plan(schedule=schedule_from_strides((1,)))
    with pytest.raises(ValueError) as error:
        plan(**clip)
    assert str(error.value) == said


@pytest.mark.parametrize("raw", [4, 7])
def test_raw_frames_that_do_not_fit_are_refused(raw: int) -> None:
    with pytest.raises(ValueError) as error:
        place_clip(
            (1, 1), repeat_strides(3, (1,)), range(raw), family=QWEN3, encode=encode
        )
    assert str(error.value) == (
        f"seconds holds {raw} raw frames, which make {(raw + 1) // 2} frames, but the "
        "schedule is for 3"
    )


@pytest.mark.parametrize(
    "seconds", [(3.0, 2.0), (0.0, float("nan")), (0.0, float("inf"))]
)
def test_times_have_to_be_in_order(seconds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError) as error:
        place_clip(
            (1, 1), repeat_strides(1, (1,)), seconds, family=QWEN3, encode=encode
        )
    assert str(error.value) == (
        f"seconds is {list(seconds)}; they must be finite and never fall"
    )


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_has_to_be_above_zero(rate: float) -> None:
    with pytest.raises(ValueError) as error:
        place_clip(
            (1, 1),
            repeat_strides(1, (1,)),
            (0.0, 1.0),
            family=Family(tokens_per_second=2),
            encode=encode,
            sampled_fps=rate,
        )
    assert str(error.value) == (f"sampled_fps is {rate}; it must be finite, above 0")


@given(
    st.integers(4, 2000),
    st.sampled_from((24.0, 25.0, 29.97, 30.0, 60.0)),
    st.integers(2, 64),
)
@example(250, 25.0, 20)
@example(3000, 30.0, 64)
def test_times_are_those_of_the_processor_that_knows_the_rate(
    total: int, fps: float, most: int
) -> None:
    """What transformers' own processor makes of frames spread over a video."""
    indices = sample_frame_indices(total, most)
    metadata = VideoMetadata(
        total_num_frames=total, fps=fps, frames_indices=list(indices)
    )
    told = Family(tokens_per_second=2)
    frames = temporal_patches(len(indices))
    clip = place_clip(
        (1, 1),
        repeat_strides(frames, (1,)),
        [index / fps for index in indices],
        family=told,
        encode=encode,
        sampled_fps=metadata.sampled_fps,
    )
    gap = 2 * torch.tensor(2 / metadata.sampled_fps)
    assert clip.span.times == tuple((torch.arange(frames) * gap).long().tolist())


def test_the_other_families_tell_time_by_positions() -> None:
    seconds, schedule = [0.0, 0.7, 1.4, 2.1, 2.8], repeat_strides(3, (1,))
    plain, timed = (
        place_clip((1, 2), schedule, seconds, family=family, encode=encode)
        for family in (Family(), Family(tokens_per_second=2))
    )
    assert plain.opening == timed.opening == START
    assert plain.span == VideoSpan(grid=(1, 2), schedule=schedule)
    times = frame_times(3, seconds_per_frame=1.4, tokens_per_second=2)
    assert times == (0, 2, 5)
    assert timed.span == VideoSpan(grid=(1, 2), schedule=schedule, times=times)
    alone = place_clip(
        (1, 2),
        repeat_strides(1, (1,)),
        [3.0],
        family=Family(tokens_per_second=2),
        encode=encode,
    )
    assert alone.span.times == (0,)


# Positions


@given(
    st.lists(
        st.tuples(fst.grids(max_side=5), st.integers(1, 5)), min_size=1, max_size=3
    ),
    fst.after_video_rules(),
)
@settings(deadline=None)
def test_place_clip__matches_transformers(
    make_family: MakeFamily, lay: Lay, clips: list[tuple[Grid, int]], rule: str
) -> None:
    spans = sample([(grid, (1,) * frames) for grid, frames in clips])
    plan = lay([spans], after_video_rule=rule)
    processor = Qwen3VLProcessor.__new__(Qwen3VLProcessor)
    ids = list[int]()
    for (height, width), frames in clips:
        ids += encode("Look")
        for time in processor._calculate_timestamps(list(range(2 * frames)), 2.0, 2):
            ids += encode(f"<{time:.1f} seconds>{START}")
            ids += [VIDEO_TOKEN_ID] * (height * width) + encode(END)
        ids += [*encode("What?"), 12, 13, 14]
    assert plan.layout.input_ids.tolist() == ids
    inputs = inputs_of(plan, torch.empty(0))
    expected, _ = make_family("qwen3_vl").model.get_rope_index(**inputs)
    assert torch.equal(plan.layout.position_ids[1:], expected[:, 0])


# The whole model


CLIPS = [((3, 5), (1, 2, 1)), ((2, 4), (2, 1))]


@pytest.mark.parametrize("clips", [CLIPS[:1], CLIPS])
def test_stride_one_equals_transformers(
    make_family: MakeFamily,
    lay: Lay,
    make_patches: MakePatches,
    clips: list[tuple[Grid, tuple[int, ...]]],
) -> None:
    spans = sample([(grid, (1,) * len(strides)) for grid, strides in clips])
    plan = lay([spans], family=QWEN3, attention="causal")
    patches = make_patches(plan)
    scores = make_family("qwen3_vl")(**inputs_of(plan, patches)).logits[0]
    model = FastSlowQwen2VL(make_family("qwen3_vl")).eval()
    output = model(patches, plan, read_logits=nn.Identity())
    assert_near(output.logits, scores[plan.labels.rows])
    loss = F.cross_entropy(
        scores[:-1], plan.layout.labels[1:], ignore_index=IGNORED_LABEL, reduction="sum"
    )
    assert_near(output.language_loss, loss)


def pooled_by_hand(features: Tensor, clips: Sequence[VideoSpan]) -> Tensor:
    """Pool raster tokens frame by frame with PyTorch's own pooling."""
    parts, first = [], 0
    for clip in clips:
        cells = clip.grid[0] * clip.grid[1]
        for stride in clip.schedule.strides:
            frame = features[first : first + cells].T.unflatten(1, clip.grid)
            pooled = F.avg_pool2d(
                frame, stride, ceil_mode=True, count_include_pad=False
            )
            parts.append(pooled.flatten(1).T)
            first += cells
    return torch.cat(parts)


def test_every_level_is_pooled_by_the_plan(
    make_family: MakeFamily,
    lay: Lay,
    make_patches: MakePatches,
    read_every_row: ReadEveryRow,
) -> None:
    plan = read_every_row(
        lay([sample(CLIPS), sample(CLIPS[1:])], padding=5, family=QWEN3)
    )
    patches, backbone = make_patches(plan), make_family("qwen3_vl")
    vision = backbone.model.visual(patches, grid_thw=plan.grid_thw)
    assert len(vision.deepstack_features) == 2
    is_video = plan.layout.frame_ids >= 0
    embeds = backbone.model.language_model.embed_tokens(plan.layout.input_ids)
    embeds[is_video] = pooled_by_hand(vision.pooler_output, plan.layout.clips)
    mask = dense_mask(interval_mask(plan.visible), len(is_video))
    features = [
        pooled_by_hand(level, plan.layout.clips) for level in vision.deepstack_features
    ]

    def read(backbone: Backbone) -> Tensor:
        """Read the row as transformers does it, under masks."""
        hidden = backbone.model.language_model(
            inputs_embeds=embeds[None],
            position_ids=plan.layout.position_ids[:, None],
            attention_mask=mask[None, None],
            visual_pos_masks=is_video[None],
            deepstack_visual_embeds=features,
            use_cache=False,
        ).last_hidden_state[0]
        return backbone.lm_head(hidden)[plan.layout.segment_ids >= 0]

    expected = read(backbone)
    model = FastSlowQwen2VL(make_family("qwen3_vl")).eval()
    found = model(patches, plan, read_logits=nn.Identity()).logits
    assert_near(found[plan.layout.segment_ids >= 0], expected)
    assert_near(read(model.backbone), expected)  # it still can


def test_every_frame_predicts_the_next_across_the_text_between(lay: Lay) -> None:
    spans = sample(CLIPS[:1])
    together = [
        replace(s, times=(), between=()) if isinstance(s, VideoSpan) else s
        for s in spans
    ]
    apart, plain = lay([spans]), lay([together])
    assert len(apart.layout.input_ids) > len(plain.layout.input_ids)
    for name in ("predictions", "targets", "copies"):
        found, expected = (getattr(p.next_frame, name) for p in (apart, plain))
        assert torch.equal(found.cells, expected.cells)
        assert torch.equal(found.cu_seqlens, expected.cu_seqlens)
    frames = apart.layout.frame_ids[apart.next_frame.rows]
    assert frames.tolist() == [0] * 15 + [1] * 6


def test_a_frame_sees_itself_and_nothing_later(lay: Lay) -> None:
    plan = lay([sample(CLIPS[:1])], family=QWEN3)
    mask = dense_mask(interval_mask(plan.visible), len(plan.layout.input_ids))
    frames = plan.layout.frame_ids
    place = torch.arange(len(frames))
    same = (frames[:, None] == frames) & (frames >= 0)
    assert torch.equal(mask, (place[:, None] >= place) | same)
