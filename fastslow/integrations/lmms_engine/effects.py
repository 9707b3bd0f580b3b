"""Which settings have an effect: those without one are errors."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from math import isfinite
from typing import Any

from lmms_engine.datasets import DatasetConfig  # type: ignore[import-not-found]
from lmms_engine.train import TrainingArguments  # type: ignore[import-not-found]

READ = (
    *("output_dir", "run_name", "project", "report_to", "carbon_intensity"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
    *("max_steps", "num_train_epochs", "save_steps", "save_total_limit"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "warmup_ratio", "max_grad_norm"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("bf16", "tf32", "reduce_dtype", "gradient_checkpointing", "fsdp_config"),
    *("freeze_modules", "print_batch_input_steps", "torch_empty_cache_steps"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_drop_last"),
    *("dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("enable_profiler", "profiler_config"),
    *("enable_memory_snapshot", "memory_snapshot_config"),
    *("enable_cuda_event_profiler", "cuda_event_profiler_config"),
    *("eval_config", "eval_strategy", "eval_steps"),
    *("use_cpu", "ddp_timeout"),
    *("sp_ulysses_degree", "tp_degree", "ep_degree"),
)
"""Training arguments that a run of ours reads.

They are those that version 0.1.4 of lmms-engine reads in ``launch/cli.py``,
``train/runner.py`` and ``train/fsdp2/fsdp2_trainer.py``, but for what the trainer here
does in its own way. All others of transformers are for its own trainer.
"""

ANYHOW: Mapping[str, Any] = {
    "fsdp2": True,
    "logging_steps": 1,
    "optim": "adamw_torch",
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "include_num_input_tokens_seen": False,  # the default, in another spelling
}
"""What happens whatever is asked; that may be said, as may any default."""

REFUSED: Mapping[str, str] = {
    "fp16": "losses are not scaled, and without that small gradients vanish in float16",
    "use_rmpad": "the patch packs rows itself, and lmms-engine has nothing to add",
    "use_liger_kernel": "lmms-engine would not apply it to a patched model",
    "output_dtype": "losses leave the forward pass in float32",
    "ema_enabled": "what it writes cannot be joined into weights for transformers",
    "group_by_length": (
        "dataset_type vision groups by guessed lengths, 5000 tokens a video, and "
        "vision_iterable never reads it"
    ),
}
"""Training arguments that would have a bad effect, and why."""

REFUSED_OF_DATA: Mapping[str, str] = {
    "max_length": (
        "dataset_type vision drops by guessed lengths, 5000 tokens a video, and "
        "vision_iterable never reads it"
    ),
    "eval_dataset_path": "lmms-engine's FSDP2 trainer evaluates nothing",
}
"""Settings of dataset_config that would have a bad effect or none, and why."""

READ_UNDER: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "frame_num": ("video_sampling_strategy", ("frame_num",)),
    "fps": ("video_sampling_strategy", ("fps",)),
    "video_max_frames": ("video_backend", ("qwen_vl_utils", "lmms_video_utils")),
    "bucket_name": ("object_storage", ("azure", "gcs")),
    "data_seed": ("dataset_type", ("vision_iterable",)),
    "filter_overlong_workers": ("dataset_type", ("vision",)),
    "packing_strategy": ("packing", (True,)),
    "packing_length": ("packing", (True,)),
    "filter_overlong": ("packing", (True,)),
}
"""Settings of dataset_config that are read under some values of another one alone."""

ALSO_READ_UNDER: Mapping[str, tuple[str, str]] = {
    "fps": ("video_backend", "qwen_omni_utils"),  # whatever it took, it says this rate
}
"""Which of them are read under a value of yet another one as well."""

SCHEDULES = ("cosine", "wsd", "constant")
"""Learning-rate schedules of lmms-engine's FSDP2 trainer."""

DEGREES = ("sp_ulysses_degree", "tp_degree", "ep_degree")
"""Over how many ranks lmms-engine would spread one row."""

LOGS = ("wandb", "none")
"""Where lmms-engine's FSDP2 trainer logs, beside the console."""


def check_effects(config: Mapping[str, Any]) -> None:
    """Refuse settings that would not do what they say.

    Args:
        config: The settings of a run, where lmms-engine reads them, their names known.

    Raises:
        ValueError: If a setting would have no effect or a bad one, or hides another.
    """
    _check_arguments(config["trainer_args"])
    _check_schedule(config["trainer_args"])
    _check_data(config["dataset_config"])
    model = config["model_config"]
    attention = model.get("attn_implementation") or "sdpa"
    if attention != "sdpa":
        raise ValueError(
            f"model_config.attn_implementation is {attention!r}; the patch brings its "
            "own attention, so leave it out"
        )
    weight = model["monkey_patch_kwargs"].get("loss_weight", 0)
    if not isinstance(weight, int | float) or not isfinite(weight) or weight < 0:
        raise ValueError(f"loss_weight is {weight!r}; it must be a number, 0 or more")
    _refuse_both(model, "load_from_pretrained_path", "load_from_config", "model_config")


def _refuse(settings: Mapping[str, Any], reasons: Mapping[str, str], at: str) -> None:
    """Refuse what is set and must not be."""
    for name, reason in reasons.items():
        if settings.get(name):
            raise ValueError(f"{at}.{name} is {settings[name]!r}; {reason}")


def _refuse_both(settings: Mapping[str, Any], one: str, other: str, at: str) -> None:
    """Refuse two settings of which lmms-engine reads the first alone."""
    if settings.get(one) and settings.get(other):
        raise ValueError(
            f"{at}.{other} is {settings[other]!r} beside {one}, which hides it; there "
            "must be one of them"
        )


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse training arguments that would not do what they say."""
    if not arguments.get("output_dir"):
        raise ValueError("trainer_args.output_dir is missing; lmms-engine needs it")
    _refuse(arguments, REFUSED, "trainer_args")
    for name in DEGREES:
        if arguments.get(name, 1) != 1:
            raise ValueError(
                f"trainer_args.{name} is {arguments[name]}; a packed row stays on one "
                "rank, so it must be 1"
            )
    _check_read(arguments)
    _check_reports(arguments)
    strategy = arguments.get("eval_strategy") or "no"
    if strategy != "no" and not arguments.get("eval_config"):
        raise ValueError(
            f"trainer_args.eval_strategy is {strategy!r} without eval_config; "
            "lmms-engine's FSDP2 trainer evaluates by a server alone"
        )
    frozen = arguments.get("freeze_modules") or []
    if not isinstance(frozen, list):
        raise ValueError(
            f"trainer_args.freeze_modules is {frozen!r}; it must be a list"
        )


def _check_read(arguments: Mapping[str, Any]) -> None:
    """Refuse training arguments that nothing reads."""
    for name in sorted(arguments.keys() - {*READ, *REFUSED}):
        if arguments[name] not in (_default_of(name), ANYHOW.get(name)):
            raise ValueError(
                f"trainer_args.{name} is {arguments[name]!r}; lmms-engine's FSDP2 "
                "trainer never reads it"
            )


def _check_reports(arguments: Mapping[str, Any]) -> None:
    """Refuse places to log that lmms-engine's FSDP2 trainer has not got."""
    logs = arguments.get("report_to") or ()
    if logs in ("all", ["all"]):  # all that are installed; lmms-engine needs wandb
        return
    for log in (logs,) if isinstance(logs, str) else logs:
        if log not in LOGS:
            raise ValueError(
                f"trainer_args.report_to has {log!r}; lmms-engine's FSDP2 trainer has "
                f"{', '.join(LOGS)}"
            )


def _default_of(name: str) -> Any:
    """Give the value of a training argument that is not set."""
    (field,) = (each for each in fields(TrainingArguments) if each.name == name)
    made = field.default_factory
    return field.default if made is MISSING else made()


def _check_schedule(arguments: Mapping[str, Any]) -> None:
    """Refuse schedules of the learning rate that would not do what they say."""
    schedule = arguments.get("lr_scheduler_type", "linear")
    if schedule not in SCHEDULES:
        raise ValueError(
            f"trainer_args.lr_scheduler_type is {schedule!r}; lmms-engine's FSDP2 "
            f"trainer has {', '.join(SCHEDULES)}"
        )
    _refuse_both(arguments, "warmup_ratio", "warmup_steps", "trainer_args")
    steps, ratio = (arguments.get(f"warmup_{each}") or 0 for each in ("steps", "ratio"))
    if not isinstance(steps, int | float) or steps < 0 or steps % 1:
        raise ValueError(
            f"trainer_args.warmup_steps is {steps!r}; it must be a whole number, and "
            "warmup_ratio is for a share of the steps"
        )
    if not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise ValueError(
            f"trainer_args.warmup_ratio is {ratio!r}; it must be at least 0 and below 1"
        )
    if schedule == "constant" and not (steps or ratio):
        raise ValueError(
            "trainer_args.lr_scheduler_type is 'constant' without warm-up, which stays "
            "at a hundredth of learning_rate; warmup_steps must be at least 1"
        )


def _check_data(dataset: Mapping[str, Any]) -> None:
    """Refuse settings of the data that would not do what they say."""
    if not isinstance(dataset.get("packing"), bool | None):
        raise ValueError(
            f"dataset_config.packing is {dataset['packing']!r}; it must be true or "
            "false"
        )
    if dataset.get("packing") and dataset["dataset_type"] == "vision":
        raise ValueError(
            "dataset_config.packing is True but dataset_type vision packs by guessed "
            "lengths, 5000 tokens a video; vision_iterable counts them"
        )
    _refuse(dataset, REFUSED_OF_DATA, "dataset_config")
    _check_read_data(dataset)
    form = dataset.get("dataset_format")
    if dataset.get("datasets") and form != "yaml":
        raise ValueError(
            f"dataset_config.dataset_format is {form!r} beside datasets; it must be "
            "'yaml', under which lmms-engine reads them"
        )
    _refuse_both(dataset, "datasets", "dataset_path", "dataset_config")


def _check_read_data(dataset: Mapping[str, Any]) -> None:
    """Refuse settings of the data that others leave without effect."""
    defaults = {n: field.default for n, field in DatasetConfig.model_fields.items()}
    settings = defaults | dict(dataset)
    for name, (other, values) in READ_UNDER.items():
        given, found = settings[name], settings[other]
        also = ALSO_READ_UNDER.get(name)
        is_read = found in values or (also and settings[also[0]] == also[1])
        if not is_read and given != defaults[name]:
            places = [*map(repr, values), *([f"{also[0]} {also[1]!r}"] if also else [])]
            raise ValueError(
                f"dataset_config.{name} is {given!r} but {other} is {found!r}; it is "
                f"read under {' or '.join(places)} alone"
            )
