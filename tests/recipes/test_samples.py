"""What a sample's clips become, from what their headers say."""

from dataclasses import replace

import pytest

from fastslow import VideoSpan
from fastslow.qwen2_vl import Family
from recipes.edge.conversations import Turn
from recipes.edge.headers import Clip
from recipes.edge.index import Sample
from recipes.edge.samples import ClipSettings, plan_sample
from recipes.edge.tiny import train_tokenizer
from recipes.edge.video import VideoInfo

SETTINGS = ClipSettings(
    family=Family(tokens_per_second=2),
    max_frames=8,
    strategy="interleave",
    slow_ratio=0.5,
    slow_stride=4,
    fast_scale=1,
    attention="frame_causal",
    capacity=4096,
    row_buckets=0,
)
TOKENIZER = train_tokenizer((), vocabulary_size=300)


def placed(info: VideoInfo) -> VideoSpan:
    """Plan a question about a clip; give the clip."""
    turns = (Turn(role="user", text="<video>What?"), Turn(role="assistant", text="A."))
    clip = Clip(kind="video", source="clip.mp4", info=info)
    sample = Sample(sample_id="0", source="rows.jsonl", turns=turns, clips=(clip,))
    (planned,) = plan_sample(sample, SETTINGS, TOKENIZER).clips
    return planned.span


INFO = VideoInfo(num_frames=100, fps=25.0, height=112, width=112)


@pytest.mark.parametrize("num_frames", [100, 200, 400])
def test_frames_stand_where_the_share_of_the_clip_puts_them(num_frames: int) -> None:
    """Eight raw frames of a clip are as far apart as an eighth of it is long."""
    seconds = num_frames / 25
    times = placed(replace(INFO, num_frames=num_frames)).times
    assert times == tuple(int(2 * frame * seconds / 4) for frame in range(4))


def test_a_clip_that_takes_no_time_stands_still() -> None:
    still = replace(INFO, num_frames=3, seconds=(0.0, 0.0, 0.0))
    assert placed(still).times == (0, 0)
