"""Configurations and tokenizers of checkpoints, read without running code of theirs."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from fastslow import TextSpan
from fastslow.qwen2_vl import VIDEO_TOKEN, encode_conversation, family_of

_T = TypeVar("_T")

MOST_LAYERS = 1024
"""Layers of a tower or a language model at most."""

LARGEST_SIZE = 2**24
"""Largest size of anything else in a configuration."""

_LAYERS = ("num_hidden_layers", "depth")
_SIZES = (
    *("hidden_size", "intermediate_size", "vocab_size", "head_dim", "num_heads"),
    *("num_attention_heads", "num_key_value_heads", "embed_dim", "out_hidden_size"),
    *("patch_size", "temporal_patch_size", "spatial_merge_size", "in_channels"),
    *("window_size", "tokens_per_second", "num_position_embeddings"),
)

_OF_THE_WRITER = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
"""What a configuration says of who wrote it, and how."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

_NO_MODEL = (
    ArithmeticError,
    AttributeError,
    KeyError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What transformers raises where the values of a configuration make no model."""


def refuse_missing_folder(name_or_path: str | Path) -> None:
    """Refuse the path of a folder that is not there, which the hub would be asked for.

    Args:
        name_or_path: A folder, or a name on the hub, ``organisation/name``.

    Raises:
        ValueError: If it is a path (absolute, beginning with a dot, of more parts than
            two, or named as what a run writes) but no folder.
    """
    folder = Path(name_or_path)
    is_path = folder.is_absolute() or len(folder.parts) > 2
    is_of_run = re.fullmatch(r"(model|checkpoint)-\d+", folder.name)
    looks_so = is_path or is_of_run or str(name_or_path).startswith(".")
    if looks_so and not folder.is_dir():
        raise ValueError(
            f"weights are {name_or_path}, which is no folder; they are a folder or a "
            "name on the hub"
        )


def read_config(name_or_path: str | Path) -> PreTrainedConfig:
    """Read what a model looks like.

    Args:
        name_or_path: Folder of a checkpoint, or its name on the hub.

    Returns:
        The configuration, of a family that is known, its sizes within bounds.

    Raises:
        ValueError: If it asks for code of its own, is of another kind of model, or its
            values make no model.
        OSError: If there is none, or the hub cannot be asked.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        given = _read_object(folder / "config.json")
    else:
        given, _ = PreTrainedConfig.get_config_dict(name_or_path)
    name = f"the config.json of {name_or_path}"
    _refuse_code(name, given)
    for part in (given, given.get("text_config"), given.get("vision_config")):
        _check_sizes(name, part)
    config: PreTrainedConfig = made_of(
        name_or_path,
        lambda: AutoConfig.from_pretrained(name_or_path, trust_remote_code=False),
    )
    family_of(config)
    return config


def _check_sizes(name: str, part: object) -> None:
    """Refuse sizes that no model has, before anything of that size is made."""
    for key, value in part.items() if isinstance(part, dict) else ():
        most = MOST_LAYERS if key in _LAYERS else LARGEST_SIZE
        if key not in (*_LAYERS, *_SIZES) or value is None:
            continue
        if not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(
                f"{name} has {key} {str(value)[:100]}; it must lie between 1 and "
                f"{most:,}"
            )


def made_of(name_or_path: str | Path, make: Callable[[], _T]) -> _T:
    """Make something of a configuration; name it where its values make nothing.

    Args:
        name_or_path: The checkpoint, for messages.
        make: What transformers does with the configuration.

    Returns:
        What it makes.

    Raises:
        ValueError: If the values make no model.
    """
    try:
        return make()
    except _NO_MODEL as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"the config.json of {name_or_path} makes no model: {message[:400]}"
        ) from error


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a checkpoint, or of a run that began with nothing.

    Its chat template is a program in Jinja's sandbox, which reaches no file and no
    Python object; how long it runs is not bounded.

    Args:
        folder: Folder of the checkpoint or the tokenizer.

    Returns:
        The tokenizer, which knows Qwen2-VL's chat format.

    Raises:
        ValueError: If it asks for code of its own, is broken, has no chat template that
            works or no token for a video, or belongs to another model.
    """
    for name in ("tokenizer_config.json", "tokenizer.json"):
        content = _read_object(folder / name)
        _refuse_code(str(folder / name), content)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # tokenizers raises nothing more special
        message = " ".join(str(error).split())[:400]
        raise ValueError(
            f"{folder} has no tokenizer that can be read: {message}"
        ) from error
    _check_tokenizer(folder, tokenizer)
    return tokenizer


def _check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without Qwen2-VL's chat format, or of another model."""
    video = tokenizer.get_vocab().get(VIDEO_TOKEN)
    if video is None:
        raise ValueError(f"the tokenizer in {folder} has no {VIDEO_TOKEN}")
    turns = [("user", "?"), ("assistant", "!")]
    try:
        spans = encode_conversation(turns, [], tokenizer)
    except (TemplateError, TypeError, ValueError) as error:
        raise ValueError(
            f"the chat template in {folder} does not work: {error}"
        ) from error
    texts = [span for span in spans if isinstance(span, TextSpan)]
    if "?" not in tokenizer.decode([i for text in texts for i in text.token_ids]):
        raise ValueError(f"the chat template in {folder} leaves out what the user says")
    if not (folder / "config.json").exists():
        return
    config = read_config(folder)
    known = config.get_text_config().vocab_size
    if len(tokenizer) > known or video != config.video_token_id:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, and {video} for a "
            f"video; the model has {known}, and {config.video_token_id} for a video"
        )


def digest_model(folder: Path) -> str:
    """Sum up what a folder says of a model beside its weights.

    Args:
        folder: Folder of a checkpoint, or of a tokenizer alone.

    Returns:
        Digits that change with the configuration and the tokenizer, not with where they
        lie, what wrote them, or the type of the weights.
    """
    digest = hashlib.sha256()
    config = folder / "config.json"
    if config.exists():
        given = _read_object(config)
        said = {name: given[name] for name in sorted(given.keys() - _OF_THE_WRITER)}
        digest.update(json.dumps(said, sort_keys=True).encode())
    for name in _TOKENIZER_FILES:
        if (folder / name).exists():
            digest.update(name.encode() + (folder / name).read_bytes())
    return digest.hexdigest()[:16]


def read_end_tokens(folder: Path) -> list[int]:
    """Read which tokens end an answer, as ``generation_config.json`` lists them.

    Nothing else there matters: answers are greedy.

    Args:
        folder: Folder of a checkpoint.

    Returns:
        Their ids; none if there is no such file, or it names none.

    Raises:
        ValueError: If the file is broken, or lists something else.
    """
    file = folder / "generation_config.json"
    given = _read_object(file).get("eos_token_id") if file.is_file() else None
    ends = given if isinstance(given, list) else [given]
    found = [each for each in ends if each is not None]
    if any(not isinstance(each, int) for each in found):
        raise ValueError(
            f"{file} has eos_token_id {str(given)[:100]}; it must be an id or a list "
            "of ids"
        )
    return found


def _read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object."""
    try:
        content: object = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist; a checkpoint has one") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no object; it must be one of names and values")
    return content


def _refuse_code(name: str, content: object) -> None:
    """Refuse what names classes in files of the checkpoint."""
    if isinstance(content, dict):
        if "auto_map" in content:
            raise ValueError(
                f"{name} asks for code of its own, by auto_map: "
                f"{str(content['auto_map'])[:200]}; none is run"
            )
        for part in content.values():
            _refuse_code(name, part)
