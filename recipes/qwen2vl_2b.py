"""Train Qwen2-VL 2B on fast/slow frames, on one GPU of 80 GB or more.

    torchrun --standalone --nproc-per-node 8 recipes/qwen2vl_2b.py --data-path FILE
    python recipes/qwen2vl_2b.py --dry-run --num-gpus 1
    python recipes/qwen2vl_2b.py --help

The dry run needs no GPU and says what the run would take. The same command, given
again, goes on from the last checkpoint. ``recipes/launch`` has commands for several
nodes.
"""

from pathlib import Path

from recipes.config import Config
from recipes.settings.parallel import Parallel
from recipes.train import run_recipe

QWEN2VL_2B = Config(
    model_name_or_path="Qwen/Qwen2-VL-2B-Instruct",
    output_dir=Path("runs/qwen2vl_2b"),
    per_device_train_batch_size=1,
    gradient_accumulation_steps=8,
    output_hidden_states=False,
    num_gpus=1,
    parallel=Parallel(activation_checkpointing="selective"),
)
"""Settings of the 2B run."""

if __name__ == "__main__":
    run_recipe(QWEN2VL_2B)
