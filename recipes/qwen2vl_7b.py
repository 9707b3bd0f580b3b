"""Train Qwen2-VL 7B on fast/slow frames, on one node of 8 GPUs or more.

    torchrun --standalone --nproc-per-node 8 recipes/qwen2vl_7b.py --data-path FILE
    python recipes/qwen2vl_7b.py --dry-run --num-gpus 8
    python recipes/qwen2vl_7b.py --help

The dry run needs no GPU and says what the run would take. The same command, given
again, goes on from the last checkpoint. ``recipes/launch`` has commands for several
nodes; give as many ``--parallel.replicate`` as there are nodes, so that parameters are
gathered inside each.
"""

from pathlib import Path

from recipes.config import Config
from recipes.settings.parallel import Parallel
from recipes.train import run_recipe

QWEN2VL_7B = Config(
    model_name_or_path="Qwen/Qwen2-VL-7B-Instruct",
    output_dir=Path("runs/qwen2vl_7b"),
    per_device_train_batch_size=2,
    gradient_accumulation_steps=8,
    learning_rate=2e-5,
    parallel=Parallel(activation_checkpointing="full"),
)
"""Settings of the 7B run."""

if __name__ == "__main__":
    run_recipe(QWEN2VL_7B)
