"""A question about one clip, answered by a model that a recipe trained.

python docs/howto/answer.py runs/tiny/model-320 clip.mp4 "Which colour is the shape?"
"""

import sys
from pathlib import Path

from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from fastslow.qwen2_vl import (
    FastSlowQwen2VL,
    generate_answers,
    patchify_clip,
    plan_row,
)
from recipes.data import clip_settings
from recipes.edge.answers import find_end_tokens, find_settings
from recipes.edge.conversations import Turn
from recipes.edge.headers import Clip
from recipes.edge.index import Sample
from recipes.edge.media import MediaFile
from recipes.edge.samples import plan_sample
from recipes.edge.video import decode_frames, probe_video

folder, name, question = sys.argv[1:]
backbone = Qwen2VLForConditionalGeneration.from_pretrained(folder)
model = FastSlowQwen2VL(backbone).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
config = find_settings(Path(folder), None)  # settings.yaml of the run
settings = clip_settings(config, model.family)

# The header of the file says all that a plan needs.
file = MediaFile(path=Path(name))
clip = Clip(kind="video", source=name, info=probe_video(file))
turns = (Turn(role="user", text=f"<video>\n{question}"),)
asked = Sample(sample_id="asked", source=name, turns=turns, clips=(clip,))
prompt = plan_sample(asked, settings, tokenizer)
row = plan_row(
    [prompt.spans],
    video_token_id=backbone.config.video_token_id,
    family=settings.family,
    attention=settings.attention,
    pool_mode=settings.pool_mode,
)

(planned,) = prompt.clips
pixels = decode_frames(file, planned.frame_indices)
scales = planned.span.schedule.scales
(answer,) = generate_answers(
    model,
    patchify_clip(pixels, settings.family.geometry, scales),
    row,
    eos_token_id=find_end_tokens(model, tokenizer),
    max_new_tokens=64,
)
print(tokenizer.decode(answer, skip_special_tokens=True))
