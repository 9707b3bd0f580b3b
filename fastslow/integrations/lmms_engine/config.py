"""The YAML of a run, checked: what lmms-engine would drop in silence is an error."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path, PurePath
from typing import Any

from lmms_engine.datasets import DatasetConfig  # type: ignore[import-not-found]
from lmms_engine.datasets.processor import (  # type: ignore[import-not-found]
    ProcessorConfig,
)
from lmms_engine.models import ModelConfig  # type: ignore[import-not-found]
from lmms_engine.train import TrainingArguments  # type: ignore[import-not-found]

from fastslow.integrations.lmms_engine.effects import check_effects

PROCESSOR = PATCH = "fastslow"
"""Name under which lmms-engine knows the processor, and the model patch."""

TRAINER = "fastslow_fsdp2_trainer"
"""Name under which lmms-engine knows the trainer."""

NESTED = "autoregressive_config"
"""Key under which settings of the method may stand as well."""

_DATASET = ("dataset_config", "extra_kwargs")
_PROCESSOR = ("dataset_config", "processor_config", "extra_kwargs")
_MODEL = ("model_config", "extra_kwargs")
_PATCH = ("model_config", "monkey_patch_kwargs")
_TRAINER = ("trainer_args",)

PLACES: Mapping[str, tuple[str, ...]] = {
    "mm_spatial_pool_stride": _PROCESSOR,
    "frame_sampling_strategy": _PROCESSOR,
    "slow_frame_ratio": _PROCESSOR,
    "loss_weight": _PATCH,
    "per_device_train_batch_size": _TRAINER,
    "gradient_accumulation_steps": _TRAINER,
    "learning_rate": _TRAINER,
    "bf16": _TRAINER,
    "fp16": _TRAINER,
    "tf32": _TRAINER,
    "gradient_checkpointing": _TRAINER,
    "dataloader_num_workers": _TRAINER,
    "dataloader_pin_memory": _TRAINER,
    "dataloader_persistent_workers": _TRAINER,
}
"""Where lmms-engine keeps the settings that the method's users write at top level."""

TRANSLATED = ("data_path", "max_frames_num", "output_hidden_states")
"""Settings of the method that lmms-engine keeps under other names, or needs not."""

SECTIONS = ("dataset_config", "model_config", "trainer_args")
"""Mappings that every run needs."""

BOUNDS = ("min_pixels", "max_pixels")
"""Sizes of frames, which dataset_config gives to loader and processor alike."""

DATA_TYPES = {".json": "json", ".jsonl": "jsonl", ".parquet": "parquet", "": "arrow"}
"""What lmms-engine calls files and folders of rows."""

DATASETS = ("vision", "vision_iterable")
"""Types of datasets that hand decoded videos to a processor."""

SHARDING = (
    "transformer_layer_cls_to_wrap",
    "reshard_after_forward",
    "hsdp_shard_size",
)
"""What lmms-engine's FSDP2 trainer reads of fsdp_config."""

SOURCE = ("path", "data_folder", "data_type")
"""What lmms-engine reads of an entry of datasets."""

HOME = (
    ("trainer_args", "output_dir"),
    ("dataset_config", "dataset_path"),
    ("model_config", "load_from_pretrained_path"),
    ("dataset_config", "processor_config", "processor_name"),
)
"""Paths in which ``~`` stands for the home of who starts the run."""


def read_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the settings of a run, and bring each to where lmms-engine reads it.

    Settings of the method may stand at top level, under ``autoregressive_config``, or
    where lmms-engine keeps them. Everything else keeps its place.

    Args:
        given: The content of the YAML file.

    Returns:
        Settings in which lmms-engine drops nothing.

    Raises:
        ValueError: If a name is unknown, two places disagree, a setting would have no
            effect, or processor, patch and trainer are not those registered here.
    """
    if not given:
        raise ValueError("there are no settings; lmms-engine needs some")
    config = _in_place(_flattened(given))
    for section in ("trainer_type", *SECTIONS):
        if config.get(section) is None:
            raise ValueError(f"{section} is missing; lmms-engine needs it")
    _check_names(config)
    _check_parts(config)
    for path in (_DATASET, _PROCESSOR, _MODEL):
        _section(config, path)  # one that is left empty is a mapping without a name
    check_effects(config)
    _expand_homes(config)
    dataset, bounds = config["dataset_config"], _section(config, _PROCESSOR)
    for name in BOUNDS:
        whole = f"video_{name}"
        value = dataset.get(whole, DatasetConfig.model_fields[whole].default)
        _put(bounds, name, value, said_by=f"dataset_config.{whole}")
    config["trainer_args"].setdefault("reduce_dtype", "float32")
    return config


def _flattened(given: Mapping[str, Any]) -> dict[str, Any]:
    """Bring what stands under ``autoregressive_config`` to the top level."""
    method = (*PLACES, *TRANSLATED)
    known = ("trainer_type", *SECTIONS, NESTED, *method)
    _check_known(given, known)
    config = deepcopy(dict(given))
    nested = _mapping(config.pop(NESTED, None), NESTED)
    _check_known(nested, method, NESTED)
    for name, value in nested.items():
        _put(config, name, value, said_by=f"{NESTED}.{name}")
    return config


def _in_place(config: dict[str, Any]) -> dict[str, Any]:
    """Move the settings of the method to where lmms-engine keeps them."""
    for name in [name for name in PLACES if name in config]:
        _put(_section(config, PLACES[name]), name, config.pop(name), said_by=name)
    config.pop("output_hidden_states", None)  # the next-frame loss reads them anyway
    dataset = _section(config, ("dataset_config",))
    if "max_frames_num" in config:
        frames = config.pop("max_frames_num")
        _put(dataset, "frame_num", frames, said_by="max_frames_num")
        name = "video_sampling_strategy"
        _put(dataset, name, "frame_num", said_by="max_frames_num")
    if "data_path" in config:
        sources = [_source(config.pop("data_path"))]
        _put(dataset, "datasets", sources, said_by="data_path")
        _put(dataset, "dataset_format", "yaml", said_by="data_path")
    return config


def _source(given: Any) -> dict[str, str]:
    """Name a dataset as lmms-engine does; its videos lie beside it."""
    path = PurePath(str(given))
    if not isinstance(given, str) or path.suffix not in DATA_TYPES:
        raise ValueError(
            f"data_path is {given!r}; it must be a .json, .jsonl or .parquet file, "
            "or a folder that datasets saved"
        )
    return {
        "path": str(path),
        "data_folder": str(path.parent),
        "data_type": DATA_TYPES[path.suffix],
    }


def _section(config: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """Give an inner mapping, made where there is none."""
    for number, name in enumerate(path, start=1):
        if config.get(name) is None:
            config[name] = {}
        _mapping(config[name], ".".join(path[:number]))
        config = config[name]
    return config


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    """Give what must be a mapping of settings; an empty one for nothing."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r}; it must be a mapping of settings")
    return value


def _put(section: dict[str, Any], name: str, value: Any, *, said_by: str) -> None:
    """Set a value that may stand there already."""
    found = section.setdefault(name, value)
    if found is not value and found != value:  # not a number is not itself
        raise ValueError(
            f"{name} is {found!r} but {said_by} asks for {value!r}; they must agree"
        )


def _expand_homes(config: dict[str, Any]) -> None:
    """Write out the paths that begin at somebody's home: nothing else would."""
    dataset = config["dataset_config"]
    sections = [(_section(config, path), name) for *path, name in HOME]
    sections += [(s, n) for s in dataset.get("datasets") or () for n in SOURCE[:2]]
    for section, name in sections:
        if str(section.get(name)).startswith("~/"):
            section[name] = str(Path(section[name]).expanduser())


def _check_names(config: Mapping[str, Any]) -> None:
    """Refuse names that lmms-engine would drop."""
    dataset, model, arguments = (_mapping(config[name], name) for name in SECTIONS)
    processor = _mapping(dataset.get(_PROCESSOR[1]), ".".join(_PROCESSOR[:2]))
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    method = [name for name, place in PLACES.items() if place == _PROCESSOR]
    method += BOUNDS
    for where, settings, known in (
        ("dataset_config", dataset, DatasetConfig.model_fields),
        (".".join(_DATASET), dataset.get(_DATASET[1]), ("packing_kwargs",)),
        (".".join(_PROCESSOR[:2]), processor, ProcessorConfig.model_fields),
        (".".join(_PROCESSOR), processor.get("extra_kwargs"), method),
        ("model_config", model, ModelConfig.model_fields),
        (".".join(_PATCH), model.get(_PATCH[1]), ("patch_type", "loss_weight")),
        ("trainer_args", arguments, fields | {"warmup_ratio"}),
        ("trainer_args.fsdp_config", arguments.get("fsdp_config"), SHARDING),
    ):
        _check_known(_mapping(settings, where), known, where)
    sources = dataset.get("datasets") or []
    if not isinstance(sources, list):
        raise ValueError(f"dataset_config.datasets is {sources!r}; it must be a list")
    for source in sources:
        where = "an entry of dataset_config.datasets"
        _check_known(_mapping(source, where), SOURCE, "dataset_config.datasets")


def _check_known(
    settings: Mapping[str, Any], known: Collection[str], within: str = ""
) -> None:
    """Refuse names that nothing reads."""
    for name in settings:
        if name not in known:
            where = f"{within}." if within else ""
            (best,) = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0)
            raise ValueError(
                f"{where}{name} is no setting; the nearest one is {where}{best}"
            )


def _check_parts(config: Mapping[str, Any]) -> None:
    """Refuse parts that do not work together."""
    dataset, model = config["dataset_config"], config["model_config"]
    processor = (dataset.get(_PROCESSOR[1]) or {}).get("processor_type")
    patches = (model.get(_PATCH[1]) or {}).get("patch_type")
    for name, found, wanted in (
        ("trainer_type", config["trainer_type"], TRAINER),
        (".".join((*_PROCESSOR[:2], "processor_type")), processor, PROCESSOR),
        (".".join((*_PATCH, "patch_type")), patches, [PATCH]),
    ):
        if found != wanted:
            raise ValueError(f"{name} is {found!r}; it must be {wanted!r}")
    if dataset.get("dataset_type") not in DATASETS:
        raise ValueError(
            f"dataset_config.dataset_type is {dataset.get('dataset_type')!r}; it must "
            f"be one of {', '.join(DATASETS)}, which hand over decoded videos"
        )
