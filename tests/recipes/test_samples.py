"""What becomes of a sample's text and clips, from what their headers say."""

from dataclasses import replace

import pytest

from fastslow import TextSpan
from fastslow.qwen2_vl import Family
from recipes.edge.data.conversations import Turn
from recipes.edge.data.headers import Clip
from recipes.edge.data.index import Sample
from recipes.edge.data.samples import ClipSettings, PlannedSample, plan_sample
from recipes.edge.media.video import VideoInfo
from recipes.edge.weights.tiny import train_tokenizer

SETTINGS = ClipSettings(
    family=Family(tokens_per_second=2),
    max_frames=8,
    strategy="interleave",
    slow_ratio=0.5,
    patch_stride=4,
    fast_scale=1,
    attention="frame_causal",
    capacity=4096,
    row_buckets=0,
)
TOKENIZER = train_tokenizer((), vocabulary_size=300)
INFO = VideoInfo(num_frames=100, fps=25.0, height=112, width=112)


def planned(
    info: VideoInfo, text: str = "<video>What?", settings: ClipSettings = SETTINGS
) -> PlannedSample:
    """Plan a question about clips that are all alike."""
    turns = (Turn(role="user", text=text), Turn(role="assistant", text="A."))
    clip = Clip(kind="video", source="clip.mp4", info=info)
    clips = (clip,) * text.count("<video>")
    sample = Sample(sample_id="0", source="rows.jsonl", turns=turns, clips=clips)
    return plan_sample(sample, settings, TOKENIZER)


@pytest.mark.parametrize("num_frames", [100, 200, 400])
def test_frames_stand_where_the_share_of_the_clip_puts_them(num_frames: int) -> None:
    """Eight raw frames of a clip are as far apart as an eighth of it is long."""
    seconds = num_frames / 25
    (clip,) = planned(replace(INFO, num_frames=num_frames)).clips
    assert clip.span.times == tuple(int(2 * frame * seconds / 4) for frame in range(4))


def test_a_clip_that_takes_no_time_stands_still() -> None:
    still = replace(INFO, num_frames=3, seconds=(0.0, 0.0, 0.0))
    (clip,) = planned(still).clips
    assert clip.span.times == (0, 0)


SHOWN = "<|vision_start|><|vision_end|>"
ABOUT = (
    "\nThe video is 0.12 seconds long. You see 3 of its frames, taken at these "
    "seconds: 0.00, 0.04, 0.08."
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<video>\nWhat?", f"{SHOWN}{ABOUT}\nWhat?"),
        ("<video>What?", f"{SHOWN}{ABOUT}\nWhat?"),
        ("What?\n<video>", f"What?\n{SHOWN}{ABOUT}"),
        ("What is in <video> here?", f"What is in {SHOWN}{ABOUT} here?"),
        ("<video><video>?", f"{SHOWN}{ABOUT}\n{SHOWN}{ABOUT}\n?"),
    ],
)
def test_what_is_said_of_a_clip_stands_apart(text: str, told: str) -> None:
    for settings, expected in (
        (replace(SETTINGS, add_time_instruction=True), told),
        (SETTINGS, text.replace("<video>", SHOWN)),
    ):
        sample = planned(replace(INFO, num_frames=3), text, settings)
        texts = [span for span in sample.spans if isinstance(span, TextSpan)]
        said = "".join(TOKENIZER.decode(each.token_ids) for each in texts)
        assert f"<|im_start|>user\n{expected}<|im_end|>" in said
