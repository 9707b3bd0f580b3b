"""Train a tiny, random Qwen2-VL on fast/slow frames, on any CPU.

    torchrun --standalone --nproc-per-node 2 recipes/qwen2vl_tiny.py
    torchrun --standalone --nproc-per-node 2 recipes/qwen2vl_tiny.py --data-path FILE
    python recipes/qwen2vl_tiny.py --help

Without ``--data-path`` it makes its own mp4 clips of a moving shape and asks for its
colour and its direction. The clips are small, 8 x 8 patches, so slow frames are pooled
with stride 2, not 4. The same command, given again, goes on from the last checkpoint.
"""

from pathlib import Path

from recipes.config import Config
from recipes.settings.parallel import Parallel
from recipes.train import run_recipe

TINY = Config(
    output_dir=Path("runs/qwen2vl_tiny"),
    mm_spatial_pool_stride=2,
    max_frames_num=8,
    min_pixels=56 * 56,
    max_pixels=112 * 112,
    tokens_per_row=640,
    packing_window=64,
    per_device_train_batch_size=1,
    gradient_accumulation_steps=1,
    learning_rate=2e-3,
    warmup_steps=20,
    max_steps=320,
    save_steps=160,
    dataloader_num_workers=0,
    output_hidden_states=False,
    parallel=Parallel(compute="float32"),
)
"""Settings of the tiny run, about two minutes on two cores."""

if __name__ == "__main__":
    run_recipe(TINY)
