"""A question about one clip, answered by a model that a recipe trained.

python docs/howto/answer.py runs/tiny/model-320 clip.mp4 "Which colour is the shape?"
"""

import argparse
from pathlib import Path

from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from fastslow.qwen2_vl import (
    FastSlowQwen2VL,
    generate_answers,
    patchify_clip,
    plan_row,
)
from recipes.edge.data.conversations import Turn
from recipes.edge.data.headers import Clip
from recipes.edge.data.index import Sample
from recipes.edge.data.samples import clip_settings, plan_sample
from recipes.edge.evaluation.answers import find_end_tokens, find_settings
from recipes.edge.media.media_file import MediaFile
from recipes.edge.media.video import decode_frames, probe_video
from recipes.edge.ranks.distributed import mistakes_in_words
from recipes.edge.weights.loading import find_weights


def answer(model_name: str, name: Path, question: str, settings: Path | None) -> str:
    """Answer a question; ValueError or OSError where something cannot be used."""
    folder = find_weights(model_name)
    config = find_settings(folder, settings)  # None: settings.yaml of the run
    # The header of the file says all that a plan needs.
    file = MediaFile(path=name)
    clip = Clip(kind="video", source=str(name), info=probe_video(file))
    turns = (Turn(role="user", text=f"<video>\n{question}"),)
    asked = Sample(sample_id="asked", source=str(name), turns=turns, clips=(clip,))

    backbone = Qwen2VLForConditionalGeneration.from_pretrained(folder)
    model = FastSlowQwen2VL(backbone).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    how = clip_settings(config, model.family)
    prompt = plan_sample(asked, how, tokenizer)
    row = plan_row(
        [prompt.spans],
        video_token_id=backbone.config.video_token_id,
        family=how.family,
        attention=how.attention,
        pool_mode=how.pool_mode,
    )

    (planned,) = prompt.clips
    pixels = decode_frames(file, planned.frame_indices)
    scales = planned.span.schedule.scales
    (ids,) = generate_answers(
        model,
        patchify_clip(pixels, how.family.geometry, scales),
        row,
        eos_token_id=find_end_tokens(model, tokenizer),
        max_new_tokens=64,
    )
    return tokenizer.decode(ids, skip_special_tokens=True)


flags = argparse.ArgumentParser()
flags.add_argument("model", help="a model-N folder of a run")
flags.add_argument("clip", type=Path, help="a video")
flags.add_argument("question")
flags.add_argument("--config", type=Path, help="YAML file of settings, else the run's")
given = flags.parse_args()
with mistakes_in_words(has_ranks=False):
    print(answer(given.model, given.clip, given.question, given.config))
