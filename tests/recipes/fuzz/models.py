"""Hostile checkpoints: code and pickles in them, headers and settings that lie."""

import json
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from recipes.edge.weights.tiny import (
    tiny_config,
    train_tokenizer,
)
from tests.recipes.fuzz.cases import (
    REFUSED,
    USED_OR_REFUSED,
    Case,
    Verdict,
    cuts,
    flips,
)

CODE = "import pathlib\npathlib.Path({!r}).touch()\n"
"""What must never run: it leaves a file."""


class Payload:
    """Pickled, it leaves a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return exec, (CODE.format(str(self._marker)),)


@cache
def seed() -> Mapping[str, bytes]:
    """Write a tiny checkpoint with its tokenizer."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer((), vocabulary_size=300)
    model = Qwen2VLForConditionalGeneration(tiny_config(300))
    with TemporaryDirectory() as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def model_cases() -> Iterator[Case]:
    """Give all hostile checkpoints."""
    yield from _code()
    yield from _configurations()
    yield from _files()
    yield from _tensors()
    yield from _tokenizers()


def model_case(
    family: str,
    name: str,
    changes: Mapping[str, bytes | None],
    may: tuple[Verdict, ...] = REFUSED,
    *,
    prepare: Callable[[Path], object] = lambda model: None,
) -> Case:
    """Give the case of a checkpoint of which some files are others, or absent."""

    def make(folder: Path) -> None:
        (folder / "model").mkdir()
        for file, content in {**seed(), **changes}.items():
            if content is not None:
                (folder / "model" / file).write_bytes(content)
        prepare(folder / "model")

    return Case(kind="model", family=f"model: {family}", name=name, make=make, may=may)


def _as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def _read(file: str) -> Any:
    return json.loads(seed()[file])


def _code() -> Iterator[Case]:
    def pickles(*names: str) -> Callable[[Path], None]:
        def write(model: Path) -> None:
            for name in names:
                payload = Payload(model.parent / "executed")
                (model / name).write_bytes(pickle.dumps(payload))

        return write

    def scripts(model: Path) -> None:
        for name in (
            "modeling_own",
            "configuration_own",
            "tokenization_own",
            "custom_generate/generate",
        ):
            path = model / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(CODE.format(str(model.parent / "executed")))

    without = {"model.safetensors": None}
    for name in (
        "pytorch_model.bin",
        "model.pt",
        "model.ckpt",
        "adapter_model.bin",
        "model.pkl",
    ):
        yield model_case("code", f"only {name}", without, prepare=pickles(name))
        yield model_case(
            "code", f"{name} too", {}, USED_OR_REFUSED, prepare=pickles(name)
        )
    disguised = pickle.dumps({"a": 1})
    yield model_case(
        "code", "a pickle as safetensors", {"model.safetensors": disguised}
    )
    for kind in ("qwen2_vl", "own"):
        for key, target in (
            ("AutoConfig", "configuration_own.OwnConfig"),
            ("AutoModel", "modeling_own.Own"),
            ("AutoModelForImageTextToText", "modeling_own.Own"),
            ("AutoModelForImageTextToText", "other/repository--modeling_own.Own"),
        ):
            config = _read("config.json") | {
                "auto_map": {key: target},
                "model_type": kind,
            }
            yield model_case(
                "code",
                f"auto_map of {kind}, {key} {target}",
                {"config.json": _as_json(config)},
                prepare=scripts,
            )
    inner = _read("config.json")
    inner["text_config"]["auto_map"] = {"AutoConfig": "configuration_own.OwnConfig"}
    yield model_case(
        "code", "auto_map inside", {"config.json": _as_json(inner)}, prepare=scripts
    )
    for changes in (
        {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}},
        {
            "auto_map": {
                "AutoTokenizer": ["tokenization_own.Own", "tokenization_own.Own"]
            },
            "tokenizer_class": "Own",
        },
        {"auto_map": ["tokenization_own.Own", None]},
    ):
        text = _as_json(_read("tokenizer_config.json") | changes)
        yield model_case(
            "code",
            f"tokenizer, {changes}",
            {"tokenizer_config.json": text},
            prepare=scripts,
        )
    processor = _as_json({"auto_map": {"AutoProcessor": "tokenization_own.Own"}})
    yield model_case(
        "code",
        "processor",
        {"processor_config.json": processor},
        USED_OR_REFUSED,
        prepare=scripts,
    )
    adapter = _as_json(
        {
            "peft_type": "LORA",
            "base_model_name_or_path": "/nowhere",
            "auto_mapping": None,
        }
    )
    yield model_case(
        "code", "an adapter", {"adapter_config.json": adapter}, USED_OR_REFUSED
    )


WRONG: dict[str, Any] = {
    "null": None,
    "text": "x",
    "a number as text": "2",
    "zero": 0,
    "minus": -1,
    "a fraction": 2.5,
    "nan": float("nan"),
    "infinity": float("inf"),
    "a list": [],
    "an object": {},
    "a billion": 10**9,
    "2^70": 2**70,
}


def _configurations() -> Iterator[Case]:
    whole = {
        "empty": b"",
        "no json": b"{",
        "a list": b"[]",
        "a number": b"3",
        "an empty object": b"{}",
        "no text": b"\xff\xfe",
        "deep": b'{"a":' * 100_000,
        "zeros": bytes(1000),
    }
    for name, content in whole.items():
        yield model_case("config", name, {"config.json": content})
    yield model_case("config", "absent", {"config.json": None})
    for kind in (
        "llama",
        "qwen2",
        "qwen2_5_vl",
        "qwen3_vl",
        "qwen2_vl_text",
        "bert",
        "llava",
    ):
        config = _read("config.json") | {"model_type": kind}
        yield model_case("config", f"of {kind}", {"config.json": _as_json(config)})
    bare = _as_json({"model_type": "qwen2_vl"})
    yield model_case("config", "of the published size", {"config.json": bare})
    keys = {
        "text_config": (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
            "intermediate_size",
            "rope_parameters",
            "rms_norm_eps",
            "hidden_act",
        ),
        "vision_config": (
            "depth",
            "embed_dim",
            "hidden_size",
            "num_heads",
            "mlp_ratio",
            "patch_size",
            "spatial_merge_size",
            "temporal_patch_size",
            "hidden_act",
        ),
    }
    for part, names in keys.items():
        for key in names:
            for name, value in WRONG.items():
                config = _read("config.json")
                config[part][key] = value
                yield model_case(
                    "config values",
                    f"{part}.{key} is {name}",
                    {"config.json": _as_json(config)},
                    USED_OR_REFUSED,
                )
        for name, value in WRONG.items():
            config = _read("config.json") | {part: value}
            yield model_case(
                "config values",
                f"{part} is {name}",
                {"config.json": _as_json(config)},
                USED_OR_REFUSED,
            )
    for key in (
        "dtype",
        "torch_dtype",
        "architectures",
        "tie_word_embeddings",
        "video_token_id",
        "quantization_config",
        "model_type",
        "transformers_version",
    ):
        for name, value in WRONG.items():
            config = _read("config.json") | {key: value}
            yield model_case(
                "config values",
                f"{key} is {name}",
                {"config.json": _as_json(config)},
                USED_OR_REFUSED,
            )


def _files() -> Iterator[Case]:
    content, file = seed()["model.safetensors"], "model.safetensors"
    (length,) = struct.unpack("<Q", content[:8])
    for name, cut in cuts(content, 10):
        yield model_case("safetensors", f"cut, {name}", {file: cut})
    for name, cut in cuts(content[: length + 8], 5):
        yield model_case("safetensors", f"cut, {name}", {file: cut})
    for name, damaged in flips(content, 30, seed=5, within=slice(0, length + 8)):
        yield model_case("safetensors", name, {file: damaged}, USED_OR_REFUSED)
    for stated in (0, 1, length - 1, length + 1, 2**31, 2**40, 2**63, 2**64 - 1):
        lying = struct.pack("<Q", stated) + content[8:]
        yield model_case("safetensors", f"a header of {stated} bytes", {file: lying})
    for name, edit in _lies().items():
        header = json.loads(content[8 : length + 8])
        edit(header)
        text = _as_json(header)
        lying = struct.pack("<Q", len(text)) + text + content[length + 8 :]
        yield model_case("safetensors", name, {file: lying})
    for name, other in {"empty": b"", "text": b"hello", "zeros": bytes(1000)}.items():
        yield model_case("safetensors", name, {file: other})
    yield model_case(
        "safetensors",
        "a link to a device",
        {file: None},
        prepare=lambda model: (model / file).symlink_to("/dev/zero"),
    )


NORM = "model.norm.weight"


def _lies() -> dict[str, Callable[[dict[str, Any]], object]]:
    """Give ways to change the header of a safetensors file."""

    def change(**values: Any) -> Callable[[dict[str, Any]], object]:
        return lambda header: header[NORM].update(values)

    return {
        "huge dimensions": change(shape=[2**40, 2**40]),
        "a dimension too many": change(shape=[1, 128]),
        "another shape": change(shape=[64, 2]),
        "negative dimensions": change(shape=[-128]),
        "offsets behind the end": change(data_offsets=[2**50, 2**50 + 256]),
        "offsets that go back": change(data_offsets=[256, 0]),
        "negative offsets": change(data_offsets=[-256, 0]),
        "overlap": change(data_offsets=[0, 256]),
        "an unknown type": change(dtype="F7"),
        "another type": change(dtype="I16"),
        "no shape": lambda header: header[NORM].pop("shape"),
        "no object": lambda header: header.update({NORM: 7}),
        "half a name": lambda header: header.update({"\ud800": header.pop(NORM)}),
        "metadata": lambda header: header.update({"__metadata__": [1]}),
    }


def _tensors() -> Iterator[Case]:
    def edited(edit: Callable[[dict[str, Tensor]], object]) -> dict[str, bytes]:
        tensors = load(seed()["model.safetensors"])
        edit(tensors)
        return {"model.safetensors": save(tensors, metadata={"format": "pt"})}

    edits: dict[str, Callable[[dict[str, Tensor]], object]] = {
        "none": lambda tensors: tensors.clear(),
        "one missing": lambda tensors: tensors.pop(NORM),
        "one more": lambda tensors: tensors.update(more=torch.zeros(2)),
        "another shape": lambda tensors: tensors.update({NORM: torch.zeros(127)}),
        "no dimension": lambda tensors: tensors.update({NORM: torch.tensor(1.0)}),
        "empty": lambda tensors: tensors.update({NORM: torch.zeros(0)}),
        "integers": lambda tensors: tensors.update(
            {NORM: torch.ones(128, dtype=torch.int64)}
        ),
        "truths": lambda tensors: tensors.update(
            {NORM: torch.ones(128, dtype=torch.bool)}
        ),
        "complex": lambda tensors: tensors.update(
            {NORM: torch.ones(128, dtype=torch.complex64)}
        ),
        "renamed": lambda tensors: tensors.update({"norm": tensors.pop(NORM)}),
        "a head of another model": lambda tensors: tensors.update(
            {"next_frame_head.0.weight": torch.zeros(3, 3)}
        ),
    }
    for name, edit in edits.items():
        yield model_case("tensors", name, edited(edit))
    twice = {"model-2.safetensors": seed()["model.safetensors"]}
    yield model_case("tensors", "twice", twice)
    index = {"metadata": {}, "weight_map": {NORM: "../../outside.safetensors"}}
    yield model_case(
        "tensors",
        "an index that climbs",
        {"model.safetensors.index.json": _as_json(index)},
        USED_OR_REFUSED,
    )


def _tokenizers() -> Iterator[Case]:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        content = seed()[file]
        for name, cut in cuts(content, 5):
            yield model_case("tokenizer", f"{file} cut, {name}", {file: cut})
        for name, damaged in flips(content, 20, seed=6):
            yield model_case(
                "tokenizer", f"{file} {name}", {file: damaged}, USED_OR_REFUSED
            )
        for name, other in {
            "empty": b"",
            "a list": b"[]",
            "a number": b"3",
            "an object": b"{}",
            "deep": b"[" * 100_000,
        }.items():
            may = USED_OR_REFUSED if file == "tokenizer_config.json" else REFUSED
            yield model_case("tokenizer", f"{file} is {name}", {file: other}, may)
    yield model_case("tokenizer", "absent", {"tokenizer.json": None})
    tokenizer = json.loads(seed()["tokenizer.json"])
    tokenizer["added_tokens"] = []
    tokenizer["model"]["vocab"] = {"a": 0}
    tokenizer["model"]["merges"] = []
    yield model_case(
        "tokenizer", "of another model", {"tokenizer.json": _as_json(tokenizer)}
    )
    templates = {
        "absent": None,
        "broken": "{% for",
        "an error": "{{ raise_exception('no') }}",
        "unknown names": "{{ nothing.at.all }}",
        "files": "{% include '/etc/passwd' %}",
        "python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "no roles": "hello",
    }
    for name, template in templates.items():
        content = None if template is None else template.encode()
        yield model_case(
            "template", name, {"chat_template.jinja": content}, USED_OR_REFUSED
        )
