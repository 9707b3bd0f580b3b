"""The settings of a run. Recipes are presets of them."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from fastslow.layouts import Attention
from fastslow.schedules import Strategy
from recipes.edge.parallel import Parallel


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a run; each is a flag of the command line."""

    output_dir: Path
    """Where the run's log, metrics, TensorBoard events and checkpoints go."""
    model_name_or_path: str | None = None
    """Folder of the checkpoint to begin with, or its name on the Hugging Face hub.
    Without it a tiny model of random weights is trained."""
    data_path: str | None = None
    """JSON, JSONL or parquet file of conversations, a folder of them, a folder of such
    folders, or such a dataset's name on the Hugging Face hub. Clips are named relative
    to the file, or lie in tar archives beside it. Without it the recipe makes clips of
    its own."""
    data_subsets: tuple[str, ...] = ()
    """Parts of the dataset to take, as SUBSET or SUBSET/SPLIT, with * for any text;
    without it, all."""
    eval_data_path: str | None = None
    """Held-out conversations, in the same form; all subsets are taken."""
    frame_sampling_strategy: Strategy = "interleave"
    """Which frames are slow."""
    slow_frame_ratio: float = 0.5
    """Share of slow frames, 0 to 1."""
    mm_spatial_pool_stride: int = 4
    """Pooling stride of slow frames, in vision patches; fast frames use twice that."""
    fast_scale: int = 1
    """How many times smaller, along each side, fast frames enter the vision tower;
    they keep as many tokens. 2 saves three quarters of the tower's work on them."""
    max_frames_num: int = 16
    """Raw frames sampled from a clip; two of them are one frame of the tower."""
    video_fps: float = 0.0
    """Raw frames sampled from each second, thinned out where there are more than
    max_frames_num; 0 spreads max_frames_num over the clip, whatever its length."""
    add_time_instruction: bool = False
    """Whether the text after a clip says how long it is, and when its frames were
    taken."""
    min_pixels: int = 128 * 28 * 28
    """Fewest pixels of a resized frame."""
    max_pixels: int = 448 * 448
    """Most pixels of a resized frame."""
    attention: Attention = "frame_causal"
    """Whether the tokens of a frame see each other both ways."""
    loss_weight: float = 0.15
    """Weight of the next-frame loss."""
    tokens_per_row: int = 16_384
    """Tokens of a packed row at most."""
    packing_window: int = 256
    """Samples from which each row is packed."""
    gradient_accumulation_steps: int = 1
    """Packed rows of each rank in one optimizer step."""
    learning_rate: float = 2e-5
    """Peak learning rate of AdamW."""
    warmup_steps: int = 100
    """Steps of linear warm-up before the cosine."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    max_skipped_steps: int = 10
    """Steps in a row that may be skipped because their gradients are not finite."""
    max_steps: int = 1000
    """Optimizer steps of the whole run."""
    save_steps: int = 200
    """Steps from one checkpoint to the next; the last step is always saved."""
    max_bad_share: float = 0.05
    """The run stops when a larger share of the samples turns out to be unusable."""
    dataloader_num_workers: int = 4
    """Processes of each rank that decode ahead; 0 decodes between steps."""
    profile_step: int = 0
    """Step of which each rank writes a profiler's trace; 0 for none."""
    seed: int = 0
    """Seeds weights, clips and the order of the samples."""
    dry_run: bool = False
    """Whether to say what the run would take instead of starting it. No GPU is
    needed, and no weights."""
    num_gpus: int = 8
    """Ranks that a dry run is for; a run takes those that it is started with."""
    device: str = "h100-80gb"
    """GPU that a dry run is for."""
    assumed_mfu: float = 0.4
    """Share of the GPU's peak from which a dry run tells the time of a step."""
    parallel: Parallel = field(default_factory=Parallel)
    """Precision, memory and parallelism."""

    def __post_init__(self) -> None:
        """Check every number before any work is done."""
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                rule = (
                    f"be at least {least}"
                    if most == math.inf
                    else f"lie between {least} and {most}"
                )
                raise ValueError(f"{name} is {value}; it must {rule}")
        if self.mm_spatial_pool_stride % 2:
            raise ValueError(
                f"mm_spatial_pool_stride is {self.mm_spatial_pool_stride}; it must be "
                "even, since a token already holds 2 x 2 patches"
            )
        if self.max_pixels < self.min_pixels:
            raise ValueError(
                f"min_pixels is {self.min_pixels} and max_pixels is "
                f"{self.max_pixels}; they must stand in this order"
            )


BOUNDS = {
    "slow_frame_ratio": (0, 1),
    "mm_spatial_pool_stride": (2, math.inf),
    "fast_scale": (1, math.inf),
    "max_frames_num": (1, math.inf),
    "video_fps": (0, math.inf),
    "min_pixels": (1, math.inf),
    "loss_weight": (0, math.inf),
    "tokens_per_row": (1, math.inf),
    "packing_window": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
    "learning_rate": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "max_skipped_steps": (0, math.inf),
    "max_steps": (1, math.inf),
    "save_steps": (1, math.inf),
    "max_bad_share": (0, 1),
    "dataloader_num_workers": (0, math.inf),
    "profile_step": (0, math.inf),
    "num_gpus": (1, math.inf),
    "assumed_mfu": (1e-6, 1),
}
"""Least and greatest value of each number."""

FREE_TO_CHANGE = {
    "output_dir",
    "max_steps",
    "save_steps",
    "dataloader_num_workers",
    "profile_step",
    "dry_run",
    "num_gpus",
    "device",
    "assumed_mfu",
}
"""Settings that may differ when a run goes on from a checkpoint."""
