"""Checkpoints of others: no code of theirs runs, and what does not fit is named."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from recipes.config import Config
from recipes.edge.evaluation.answers import load_model
from recipes.edge.weights.loading import build_meta_model
from recipes.edge.weights.pretrained import read_config, read_tokenizer
from tests.recipes.fuzz.models import seed

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in seed().items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def change(file: Path, **values: Any) -> None:
    """Change values of a JSON file; those of its parts by ``part__name``."""
    content = json.loads(file.read_text())
    for name, value in values.items():
        *parts, last = name.split("__")
        inner = content
        for part in parts:
            inner = inner[part]
        inner[last] = value
    file.write_text(json.dumps(content))


def test_a_checkpoint_is_read(folder: Path) -> None:
    assert read_config(folder).model_type == "qwen2_vl"
    assert read_tokenizer(folder).get_vocab() == (
        AutoTokenizer.from_pretrained(folder).get_vocab()
    )
    model = load_model(folder, Config(output_dir=folder), CPU)
    assert not any(weight.isnan().any() for weight in model.parameters())


@pytest.mark.parametrize("name", ["text_config__auto_map", "auto_map"])
def test_code_of_a_model_is_refused(folder: Path, name: str) -> None:
    change(folder / "config.json", **{name: {"AutoConfig": "own.Own"}})
    with pytest.raises(ValueError) as caught:
        build_meta_model(folder)
    assert str(caught.value) == (
        f"the config.json of {folder} asks for code of its own, by auto_map: "
        "{'AutoConfig': 'own.Own'}; none is run"
    )


def test_code_of_a_tokenizer_is_refused(folder: Path) -> None:
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["o.O", None]})
    with pytest.raises(
        ValueError, match=r"asks for code of its own, by auto_map: .*o.O"
    ):
        read_tokenizer(folder)


def test_a_pickle_is_never_loaded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="has no safetensors file; weights are read"):
        load_model(folder, Config(output_dir=folder), CPU)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("text_config__num_hidden_layers", 10**9, "between 1 and 1,024"),
        ("text_config__hidden_size", 0, "between 1 and 16,777,216"),
        ("vision_config__patch_size", -1, "between 1 and 16,777,216"),
        ("vision_config__patch_size", [2, 2], "between 1 and 16,777,216"),
        ("text_config__hidden_act", "x", "makes no model: "),
        ("text_config__hidden_size", 2**20, "instead of"),
        ("vision_config__depth", 1, "has unknown .*visual.blocks.1"),
    ],
)
def test_a_configuration_that_lies(
    folder: Path, name: str, value: object, message: str
) -> None:
    change(folder / "config.json", **{name: value})
    with pytest.raises(ValueError, match=message):
        build_meta_model(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{", b'{"a":' * 100_000])
def test_a_configuration_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is (not readable|no object)"):
        read_config(folder)


@pytest.mark.parametrize("length", [0, 7, 2**40, 2**64 - 1])
def test_a_header_that_lies_names_its_file(folder: Path, length: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    with pytest.raises(
        ValueError, match=r"model\.safetensors is no safetensors file: "
    ):
        build_meta_model(folder)


def test_integers_are_no_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes().replace(b'"BF16"', b'"I16" ')
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"as I16; a weight is one of BF16, F16, F32"):
        build_meta_model(folder)


def test_the_tokenizer_of_another_model(folder: Path) -> None:
    change(folder / "config.json", video_token_id=3)
    with pytest.raises(ValueError, match="and 6 for a video; the model has 300, and 3"):
        read_tokenizer(folder)


def test_a_chat_template_has_to_work(folder: Path) -> None:
    for text, message in {
        "{% for": "does not work",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}": "does not work|leaves out",
        "hello": "leaves out what the user says",
        "{% for m in messages %}{{ m.content[0].text }}{% endfor %}": "ends no answer",
    }.items():
        (folder / "chat_template.jinja").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_tokenizer(folder)


def test_a_tokenizer_that_is_none(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(ValueError, match="has no tokenizer that can be read: "):
        read_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json does not exist"):
        read_tokenizer(folder)
