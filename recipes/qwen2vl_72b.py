"""Train Qwen2-VL 72B on fast/slow frames, on 4 nodes of 8 GPUs or more.

    sbatch recipes/launch/slurm.sh recipes/qwen2vl_72b.py --data-path FILE
    python recipes/qwen2vl_72b.py --dry-run --num-gpus 32
    python recipes/qwen2vl_72b.py --help

The dry run needs no GPU and says what the run would take. The same command, given
again, goes on from the last checkpoint. One copy of the model's state is spread over
all ranks; with many more nodes than it needs, give ``--parallel.replicate``.
"""

from pathlib import Path

from recipes.config import Config
from recipes.settings.parallel import Parallel
from recipes.train import run_recipe

QWEN2VL_72B = Config(
    model_name_or_path="Qwen/Qwen2-VL-72B-Instruct",
    output_dir=Path("runs/qwen2vl_72b"),
    max_frames_num=8,
    tokens_per_row=8192,
    per_device_train_batch_size=1,
    gradient_accumulation_steps=16,
    learning_rate=1e-5,
    num_gpus=32,
    parallel=Parallel(activation_checkpointing="full"),
)
"""Settings of the 72B run."""

if __name__ == "__main__":
    run_recipe(QWEN2VL_72B)
