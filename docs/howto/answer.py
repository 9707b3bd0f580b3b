"""A question about one clip, answered by a model that a recipe trained.

python docs/howto/answer.py runs/tiny/model-320 clip.mp4 "Which colour is the shape?"
"""

import sys
from pathlib import Path

from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from fastslow.qwen2_vl import (
    FastSlowQwen2VL,
    encode_conversation,
    generate_answers,
    patchify_clip,
    place_clip,
    plan_row,
)
from recipes.data import clip_settings
from recipes.edge.answers import find_end_tokens, find_settings
from recipes.edge.headers import Clip
from recipes.edge.media import MediaFile
from recipes.edge.samples import choose_frames, schedule_clip
from recipes.edge.video import decode_frames, probe_video

folder, name, question = sys.argv[1:]
backbone = Qwen2VLForConditionalGeneration.from_pretrained(folder)
model = FastSlowQwen2VL(backbone).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
config = find_settings(Path(folder), None)  # settings.yaml of the run
settings = clip_settings(config, model.family, backbone.device)
family = settings.family

# The header of the file says all that a plan needs.
file = MediaFile(path=Path(name))
info = probe_video(file)
frames = choose_frames(Clip(kind="video", source=name, info=info), settings)
grid, schedule = schedule_clip(len(frames), (info.height, info.width), settings)
seconds = info.seconds_at(frames)
clip = place_clip(grid, schedule, seconds, family=family, encode=tokenizer.encode)
prompt = encode_conversation([("user", f"<video>\n{question}")], [clip], tokenizer)
row = plan_row(
    [prompt],
    video_token_id=backbone.config.video_token_id,
    family=family,
    attention=settings.attention,
    pool_mode=settings.pool_mode,
)

pixels = decode_frames(file, frames)
(answer,) = generate_answers(
    model,
    patchify_clip(pixels, family.geometry, schedule.scales),
    row,
    end_token_ids=find_end_tokens(model, tokenizer),
    max_new_tokens=64,
)
print(tokenizer.decode(answer, skip_special_tokens=True))
