"""A clip becomes tokens: pixels, patches, merged tokens, pooled tokens.

python docs/tutorial/clip.py
"""

from pathlib import Path

import torch
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VisionTransformerPretrainedModel,
)

from fastslow import build_schedule, describe_schedule, plan_pooling, pool_tokens
from fastslow.plotting import schedule_svg
from fastslow.qwen2_vl import (
    VisionGeometry,
    clip_grid,
    normalize_patches,
    patchify_clip,
)

# 16 raw frames of 240 x 320 pixels, in which a bright square moves to the right.
clip = torch.full((16, 3, 240, 320), 40, dtype=torch.uint8)
for t in range(16):
    clip[t, :, 96:144, 16 * t : 16 * t + 48] = 220
print("raw frames    ", *clip.shape)

geometry = VisionGeometry(max_pixels=224 * 224, min_pixels=112 * 112)
frames, (height, width) = clip_grid(16, 240, 320, geometry)  # no pixel is needed
patches = patchify_clip(clip, geometry)
print("grid of tokens", frames, height, width)
print("patches       ", *patches.shape)

# The tower of Qwen2-VL, small and with random weights.
torch.manual_seed(0)
size = Qwen2VLVisionConfig(depth=1, embed_dim=32, num_heads=2, hidden_size=64)
tower = Qwen2VisionTransformerPretrainedModel(size)
grid_thw = torch.tensor([[frames, 2 * height, 2 * width]])  # in patches
seen = tower(normalize_patches(patches, geometry), grid_thw)
tokens = seen.pooler_output
print("merged tokens ", *tokens.shape)

schedule = build_schedule(frames, slow_stride=2, fast_stride=4)
pooled = pool_tokens(tokens, plan_pooling([((height, width), schedule)]))
print("pooled tokens ", *pooled.values.shape)
print("of the frames ", *pooled.cu_seqlens.diff().tolist())
print(describe_schedule((height, width), schedule))

picture = schedule_svg((height, width), schedule)
Path(__file__).with_suffix(".svg").write_text(picture)
