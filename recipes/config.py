"""The settings of a run. Recipes are presets of them; files and flags change them."""

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastslow.grids import Mode
from fastslow.layouts import Attention
from fastslow.losses import Distance
from recipes.settings.mappings import (
    check_known,
    check_mapping,
    check_same_settings,
    fill_settings,
    read_settings,
    setting_names,
    settings_as_json,
)
from recipes.settings.parallel import Parallel
from recipes.settings.strategies import parse_strategy, strategy_text
from recipes.settings.values import check_bounds, convert


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
    archives_on_disk: int = 0
    """Unzipped archives of the dataset that are kept at a time, at least 3; samples are
    then drawn archive by archive, and the next one is fetched meanwhile. 0 keeps all
    and mixes all samples."""
    eval_data_path: str | None = None
    """Held-out conversations, in the same form; all subsets are taken. It needs
    data_path: clips that the recipe makes come with held-out ones of their own."""
    frame_sampling_strategy: str = "interleave"
    """Which frames are slow. One of ``interleave``, ``first_slow``, ``last_slow``,
    ``uniform``, or a constructor of the core with its own arguments, such as
    ``repeat_strides(pattern=(2, 4, 4))``, whose strides are in merged tokens."""
    slow_frame_ratio: float = 0.5
    """Share of slow frames, from 0 (all fast) to 1 (all slow)."""
    mm_spatial_pool_stride: int = 4
    """Pooling stride of slow frames, in vision patches; fast frames use twice that."""
    mm_spatial_pool_mode: Mode = "average"
    """How the tokens of a window become one. One of ``average``, ``max``, ``area`` and
    ``bilinear``, which is how LLaVA-NeXT trains."""
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
    """Weight of the next-frame loss. 0 turns it off; nothing is predicted, no targets
    are taken, and the head is not trained."""
    next_frame_distance: Distance = "cosine"
    """What the next-frame loss measures. One of ``cosine``, ``mse``, ``smooth_l1``,
    ``l1`` and ``mse+cosine``."""
    tokens_per_row: int = 16_384
    """Tokens of a packed row at most."""
    packing_window: int = 256
    """Samples from which each row is packed."""
    per_device_train_batch_size: int = 2
    """Packed rows of each rank, times the next setting. A row is not padded to the
    length of another: each has a forward and a backward pass of its own."""
    gradient_accumulation_steps: int = 8
    """Times that many rows; the product is the number of packed rows of each rank in
    one optimizer step, however it is split in two."""
    learning_rate: float = 2e-5
    """Peak learning rate of AdamW, whose betas are 0.9 and 0.95."""
    weight_decay: float = 0.0
    """AdamW's decay of matrices; norms and biases have none."""
    warmup_steps: int = 100
    """Steps of linear warm-up before the cosine."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 clips none."""
    max_skipped_steps: int = 10
    """Steps in a row that may be skipped because their gradients are not finite."""
    max_steps: int = 1000
    """Optimizer steps of the whole run."""
    eval_steps: int = 0
    """Steps from one asking of all held-out questions to the next; they are asked after
    the last step in any case. 0 asks them then alone."""
    save_steps: int = 200
    """Steps from one checkpoint to the next; the last step is always saved."""
    save_total_limit: int = 3
    """Checkpoints that are kept, the newest ones."""
    async_save: bool = False
    """Whether checkpoints are written beside the training, from a copy in host memory:
    a step waits for the copy alone."""
    max_bad_share: float = 0.05
    """The run stops when a larger share of the samples turns out to be unusable."""
    dataloader_num_workers: int = 4
    """Processes of each rank that decode ahead; 0 decodes between steps."""
    dataloader_pin_memory: bool = True
    """Whether rows wait in page-locked memory for their way to a GPU."""
    dataloader_persistent_workers: bool = True
    """Accepted without effect; those processes live as long as the run, whose stream of
    rows has no end."""
    tf32: bool = True
    """Whether GPUs may multiply in TensorFloat-32, where a run computes in float32."""
    output_hidden_states: bool = True
    """Accepted without effect; the next-frame loss reads the last hidden states in
    the same forward pass, and no others are kept."""
    profile_step: int = 0
    """Step of which each rank writes a profiler's trace; 0 for none. Its time is that
    of a step that is watched."""
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

    @property
    def rows_per_step(self) -> int:
        """Packed rows of each rank in one optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def matmul_precision(self) -> str:
        """Precision of products of float32 matrices on a GPU, in torch's words.

        A run in bfloat16 has none that TensorFloat-32 would speed up. It may round
        positions and frequencies where transformers, up to 5.18, multiplies them into
        angles as matrices (huggingface/transformers#48428): such a rounding, emulated,
        turns an angle by a third of a radian at position 2,048. Long rows in float32
        do without it (``tf32: false``).
        """
        is_float32 = self.parallel.compute == "float32"
        return "high" if self.tf32 and is_float32 else "highest"

    def __post_init__(self) -> None:
        """Find the user's folder, and check every number before any work is done."""
        for name in PATHS:
            path = getattr(self, name)
            if path is not None:
                whole = os.path.expanduser(path)  # noqa: PTH111, else ./x is x
                object.__setattr__(self, name, type(path)(whole))
        parse_strategy(self.frame_sampling_strategy)
        check_bounds(self, BOUNDS)
        if self.archives_on_disk in {1, 2}:
            raise ValueError(
                f"archives_on_disk is {self.archives_on_disk}; it must be 0 or at "
                "least 3: one is read, one is left, one is fetched"
            )
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


PATHS = ("output_dir", "model_name_or_path", "data_path", "eval_data_path")
"""Settings that may name a file or a folder."""

BOUNDS = {
    "slow_frame_ratio": (0, 1),
    "mm_spatial_pool_stride": (2, math.inf),
    "fast_scale": (1, math.inf),
    "max_frames_num": (1, math.inf),
    "video_fps": (0, math.inf),
    "archives_on_disk": (0, math.inf),
    "min_pixels": (1, math.inf),
    "loss_weight": (0, math.inf),
    "tokens_per_row": (1, math.inf),
    "packing_window": (1, math.inf),
    "per_device_train_batch_size": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
    "learning_rate": (0, math.inf),
    "weight_decay": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "max_skipped_steps": (0, math.inf),
    "max_steps": (1, math.inf),
    "eval_steps": (0, math.inf),
    "save_steps": (1, math.inf),
    "save_total_limit": (1, math.inf),
    "max_bad_share": (0, 1),
    "dataloader_num_workers": (0, math.inf),
    "profile_step": (0, math.inf),
    "num_gpus": (1, math.inf),
    "assumed_mfu": (1e-6, 1),
}
"""Least and greatest value of each number."""

FREE_TO_CHANGE = frozenset(
    {
        "output_dir",
        "model_name_or_path",
        "data_path",
        "eval_data_path",
        "learning_rate",
        "warmup_steps",
        "max_grad_norm",
        "max_skipped_steps",
        "max_bad_share",
        "max_steps",
        "eval_steps",
        "save_steps",
        "save_total_limit",
        "async_save",
        "parallel.replicate",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "output_hidden_states",
        "profile_step",
        "dry_run",
        "num_gpus",
        "device",
        "assumed_mfu",
    }
)
"""Settings that may differ when a run goes on from a checkpoint, by dotted names: those
without which a run that ended for its own good could never go on, too. Data may have
moved; that they are the same samples is checked by what they say. So may the
weights to begin with, of which only configuration and tokenizer are read again."""

NESTED = "autoregressive_config"
"""Key under which settings of the method may stand as well."""

ALIASES = ("bf16", "fp16", "gradient_checkpointing")
"""Names of what is true or false and stands for a setting of ``Parallel``, or none."""

METHOD = (
    "mm_spatial_pool_stride",
    "frame_sampling_strategy",
    "slow_frame_ratio",
    "loss_weight",
    "data_path",
    "max_frames_num",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "tf32",
    "output_hidden_states",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    *ALIASES,
)
"""Settings that may stand under ``autoregressive_config``."""


def load_config(file: Path, preset: Config) -> Config:
    """Let a YAML file change a preset.

    Args:
        file: A mapping of settings, such as ``settings.yaml`` of a run.
        preset: Gives what the file does not name.

    Returns:
        The settings.

    Raises:
        ValueError: If the file is no mapping of known settings, or breaks a rule.
    """
    try:
        return with_settings(preset, read_settings(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Change some settings by name.

    ``bf16`` and ``gradient_checkpointing`` stand for ``parallel.compute`` and
    ``parallel.activation_checkpointing``. The latter stays as it is where it recomputes
    something already, and becomes ``full`` where it does not.

    Args:
        config: The settings so far.
        settings: Values by name as YAML gives them. ``parallel`` is a mapping, so may
            be ``autoregressive_config``, which holds settings of ``METHOD``, and so may
            ``frame_sampling_strategy``, with a ``name`` and arguments.

    Returns:
        The settings.

    Raises:
        ValueError: If a name is unknown, two places disagree, or a value breaks a rule.

    Example:
        >>> config = Config(output_dir=Path("runs"))
        >>> with_settings(config, {"bf16": False}).parallel.compute
        'float32'
    """
    given = _flattened(settings)
    aliases = {
        name: convert(name, given.pop(name), bool) for name in ALIASES if name in given
    }
    strategy = given.get("frame_sampling_strategy")
    if isinstance(strategy, Mapping):
        given["frame_sampling_strategy"] = strategy_text(strategy)
    config = fill_settings(config, given)
    wanted = _meant_by(aliases, config)
    named = given.get("parallel", {})
    for name, value in wanted.items():
        if name in named and named[name] != value:
            raise ValueError(
                f"parallel.{name} is {named[name]!r} but bf16 or "
                f"gradient_checkpointing asks for {value!r}; they must agree"
            )
    return fill_settings(config, {"parallel": wanted}) if wanted else config


def refuse_contradictions(config: Config) -> None:
    """Refuse settings of which one makes no sense beside another.

    Raises:
        ValueError: If there are such; the message names both.
    """
    if config.profile_step > config.max_steps:
        raise ValueError(
            f"profile_step is {config.profile_step} but max_steps is "
            f"{config.max_steps}; it must be one of the run's steps"
        )
    if config.eval_data_path is not None and config.data_path is None:
        raise ValueError(
            f"eval_data_path is {config.eval_data_path} but there is no data_path; "
            "clips that the recipe makes come with held-out ones of their own"
        )


def refuse_other_settings(
    config: Config, *, free: Collection[str] = FREE_TO_CHANGE
) -> None:
    """Refuse an output folder in which a run with other settings was begun.

    Args:
        config: The settings now; they fill what the folder's file does not name.
        free: Names of those that may differ; dots lead into settings of settings.

    Raises:
        ValueError: If there is such a run; the message names a setting.
    """
    file = config.output_dir / SETTINGS_FILE
    if file.exists():
        before = settings_as_json(load_config(file, config))
        check_same_settings(before, config, free=free)


SETTINGS_FILE = "settings.yaml"
"""Name of the settings beside the checkpoints of a run."""


def _flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bring what stands under ``autoregressive_config`` to the top level."""
    known = (*setting_names(Config), *ALIASES, NESTED)
    check_known(settings, known)
    given = dict(settings)
    nested = check_mapping(NESTED, given.pop(NESTED, {}))
    for name in set(nested) & set(known) - set(METHOD):
        raise ValueError(f"{name} is no setting of {NESTED}; it stands at top level")
    check_known(nested, METHOD, within=NESTED)
    for name, value in nested.items():
        if name in given and given[name] != value:
            raise ValueError(
                f"{name} is {given[name]!r} but {NESTED}.{name} is {value!r}; they "
                "must agree"
            )
    return given | dict(nested)


def _meant_by(aliases: Mapping[str, bool], config: Config) -> dict[str, str]:
    """Give the settings of ``Parallel`` that other names stand for."""
    if aliases.get("fp16"):
        raise ValueError(
            "fp16 is True; losses are not scaled here, and without that small "
            "gradients vanish in float16: bf16 has the range of float32"
        )
    meant = {}
    if "bf16" in aliases:
        meant["compute"] = "bfloat16" if aliases["bf16"] else "float32"
    if "gradient_checkpointing" in aliases:
        kind = config.parallel.activation_checkpointing
        some = "full" if kind == "none" else kind
        meant["activation_checkpointing"] = (
            some if aliases["gradient_checkpointing"] else "none"
        )
    return meant
