"""Checkpoints of transformers, read into a model of one rank and written again."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    checkpoint_wrapper,
)
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import (
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2VLForConditionalGeneration,
)

from fastslow.qwen2_vl import FastSlowQwen2VL
from recipes.edge.ranks.distributed import World
from recipes.edge.weights.export import HEAD_FILE, export_pretrained
from recipes.edge.weights.loading import (
    build_meta_model,
    find_weights,
    load_pretrained,
    materialize,
)
from recipes.edge.weights.tiny import train_tokenizer
from tests.small_models import small_config

ROOT = Path(__file__).parents[2]
EMBEDDING = "model.embed_tokens.weight"
HEAD = "next_frame_head.0.weight"

Write = Callable[..., Path]


def backbone(*, tied: bool, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Draw a tiny Qwen2-VL; two of its sizes are odd."""
    torch.manual_seed(7)
    config = small_config(
        {"vocab_size": 41, "intermediate_size": 45, "initializer_range": 0.3},
        video_token_id=9,
        image_token_id=8,
        tie_word_embeddings=tied,
    )
    made = Qwen2VLForConditionalGeneration(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape) / 4)
    return made


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Let transformers write a checkpoint."""

    def make(*, tied: bool = False, name: str = "source", **settings: Any) -> Path:
        folder = tmp_path / name
        backbone(tied=tied).save_pretrained(folder, **settings)
        return folder

    return make


def loaded(folder: Path, world: World, *, seed: int = 0) -> FastSlowQwen2VL:
    """Build, materialize and load a model that is not sharded."""
    model = build_meta_model(folder)
    materialize(model, world.device, seed=seed)
    load_pretrained(folder, model)
    return model


def logits(folder: Path) -> Tensor:
    """Ask transformers' model of a folder about text and one clip."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor([[1, 2, 9, 9, 5, 40]]),
            mm_token_type_ids=torch.tensor([[0, 0, 2, 2, 0, 0]]),
            pixel_values_videos=torch.randn(8, 24, generator=generator),
            video_grid_thw=torch.tensor([[1, 2, 4]]),
        )
    found: Tensor = output.logits
    return found


def saved_tensors(folder: Path, pattern: str = "model*.safetensors") -> Any:
    """Read every tensor of transformers' files."""
    found: dict[str, Tensor] = {}
    for file in folder.glob(pattern):
        found |= load_file(file)
    return found


def change(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    """Rewrite the only file of a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def error_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor on the CPU."""
    gathered: Any = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    copied: Tensor = gathered.detach().cpu()
    return copied


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(whole(found[name]), whole(value)), name


def test_a_local_folder_is_found_as_it_is(tmp_path: Path) -> None:
    assert find_weights(tmp_path) == tmp_path
    assert find_weights(str(tmp_path)) == tmp_path


def test_a_path_is_no_name_on_the_hub(tmp_path: Path) -> None:
    for path in (
        tmp_path / "absent",
        "./absent",
        "../absent",
        "runs/tiny/model-9",
        "tiny/model-9",
    ):
        assert error_of(lambda path=path: find_weights(path)) == (  # type: ignore[misc]
            f"weights are {path}, which is no folder; they are a folder or a name on "
            "the hub"
        )


def test_a_name_is_found_in_the_hubs_cache(
    write: Write, world: World, tmp_path: Path
) -> None:
    source = write(tied=True, max_shard_size="30KB")
    cached = tmp_path / "hub" / "models--lab--clips"
    snapshot = cached / "snapshots" / ("a" * 40)
    for folder in (snapshot, cached / "blobs", cached / "refs"):
        folder.mkdir(parents=True)
    (cached / "refs" / "main").write_text("a" * 40)
    for number, file in enumerate(sorted(source.iterdir())):
        shutil.copyfile(file, cached / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    program = (
        "from recipes.edge.weights.loading import find_weights\n"
        "print(find_weights('lab/clips'))\n"
        "try: find_weights('lab/absent')\n"
        "except OSError: print('absent')\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.split() == [str(snapshot), "absent"]
    model = loaded(snapshot, world)
    assert_same(model.backbone.state_dict(), backbone(tied=True).float().state_dict())


@pytest.mark.parametrize("flat", [False, True])
def test_a_meta_model_is_in_float32_without_memory(write: Write, flat: bool) -> None:
    folder = write()
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    if flat:  # as on the hub: the language model's settings beside the others
        config["torch_dtype"] = config.pop("dtype")
        config["vision_config"]["dtype"] = "bfloat16"
        config |= config.pop("text_config") | {"model_type": "qwen2_vl"}
        (folder / "config.json").write_text(json.dumps(config))
    model = build_meta_model(folder)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert all(weight.is_meta for weight in model.parameters())
    assert model.next_frame_head[2].weight.shape == (16, 32)


def test_a_folder_has_to_describe_a_qwen2_vl(tmp_path: Path) -> None:
    assert error_of(lambda: build_meta_model(tmp_path)) == (
        f"{tmp_path} has no config.json; a checkpoint describes itself"
    )
    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    assert error_of(lambda: build_meta_model(tmp_path)) == (
        "model_type is 'llama'; it must be one of qwen2_vl, qwen2_5_vl, qwen3_vl"
    )


def shard_nothing(model: FastSlowQwen2VL, world: World) -> None:
    """Leave the model whole."""


def shard_root(model: FastSlowQwen2VL, world: World) -> None:
    fully_shard(model, mesh=world.mesh)


def shard_everything(model: FastSlowQwen2VL, world: World) -> None:
    """Shard layers, blocks and the modules that hold them, the classes included."""
    inner = model.backbone.model
    for part in (*inner.language_model.layers, *inner.visual.blocks):
        fully_shard(part, mesh=world.mesh)
    for module in (inner.visual, inner, model.backbone, model):
        fully_shard(module, mesh=world.mesh)


def shard_wrapped(model: FastSlowQwen2VL, world: World) -> None:
    """Recompute the activations of every layer, and shard it."""
    layers = model.backbone.model.language_model.layers
    for number, layer in enumerate(layers):
        layers[number] = checkpoint_wrapper(layer)
        fully_shard(layers[number], mesh=world.mesh)
    fully_shard(model, mesh=world.mesh)


SHARDINGS = (shard_nothing, shard_root, shard_everything, shard_wrapped)


@pytest.mark.parametrize("shard", SHARDINGS)
@pytest.mark.parametrize("tied", [False, True])
def test_buffers_and_ties_are_those_of_an_ordinary_build(
    write: Write, world: World, shard: Any, tied: bool
) -> None:
    ordinary = FastSlowQwen2VL(backbone(tied=tied, dtype=torch.float32))
    model = build_meta_model(write(tied=tied))
    shard(model, world)
    materialize(model, world.device)
    expected = dict(ordinary.named_buffers())
    assert len(expected) >= 4
    assert_same(dict(model.named_buffers()), expected)
    assert {buffer.device for buffer in model.buffers()} == {world.device}
    assert model.state_dict().keys() == ordinary.state_dict().keys()
    weights = dict(model.named_parameters()).keys()
    assert len(weights) == len(list(ordinary.parameters()))
    head = model.backbone.lm_head.weight
    embedding = model.backbone.model.language_model.embed_tokens.weight
    assert (head is embedding) is tied


def test_every_weight_is_nan_until_it_is_loaded(write: Write, world: World) -> None:
    folder = write()
    model = build_meta_model(folder)
    materialize(model, world.device)
    assert all(weight.isnan().all() for weight in model.backbone.parameters())
    assert not load_pretrained(folder, model)
    assert not any(weight.isnan().any() for weight in model.parameters())


@pytest.mark.parametrize("shard", SHARDINGS)
def test_the_head_is_drawn_as_an_ordinary_one(
    write: Write, world: World, shard: Any
) -> None:
    folder = write()
    torch.manual_seed(5)
    expected = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 16))
    state = torch.get_rng_state()
    model = build_meta_model(folder)
    shard(model, world)
    materialize(model, world.device, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    load_pretrained(folder, model)
    for name, weight in model.next_frame_head.state_dict().items():
        assert torch.equal(whole(weight), expected.state_dict()[name])
    other = build_meta_model(folder)
    materialize(other, world.device, seed=6)
    drawn = whole(other.next_frame_head[0].weight)
    assert not torch.equal(drawn, expected[0].weight)


def test_a_buffer_that_transformers_does_not_fill_is_refused(
    write: Write, world: World
) -> None:
    model = build_meta_model(write())
    extra = torch.empty(3, device="meta")
    model.next_frame_head[1].register_buffer("scale", extra, persistent=False)
    assert error_of(lambda: materialize(model, world.device)) == (
        "next_frame_head.1.scale is a buffer that transformers does not fill; every "
        "buffer outside the checkpoint must have a value"
    )


@pytest.mark.parametrize("shard", SHARDINGS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("hub_names", [False, True])
@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_a_checkpoint_of_transformers_is_loaded(
    write: Write, world: World, shard: Any, tied: bool, hub_names: bool, size: str
) -> None:
    folder = write(tied=tied, max_shard_size=size, save_original_format=hub_names)
    assert (EMBEDDING in saved_tensors(folder)) is hub_names
    assert (len(list(folder.glob("*.safetensors"))) > 1) is (size == "20KB")
    model = build_meta_model(folder)
    model.freeze_tower()
    shard(model, world)
    materialize(model, world.device)
    assert not load_pretrained(folder, model)
    expected = backbone(tied=tied).float().state_dict()
    assert_same(model.backbone.state_dict(), expected)
    frozen = list(model.backbone.model.visual.blocks.parameters())
    assert frozen and not any(weight.requires_grad for weight in frozen)


def test_offloaded_parameters_stay_on_the_cpu(
    write: Write, world: World, tmp_path: Path
) -> None:
    source, folder = write(tied=True), tmp_path / "export"
    model = build_meta_model(source)
    policy = CPUOffloadPolicy(pin_memory=False)
    fully_shard(model, mesh=world.mesh, offload_policy=policy)
    materialize(model, world.device, offload=True)
    load_pretrained(source, model)
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    assert {buffer.device for buffer in model.buffers()} == {world.device}
    export_pretrained(folder, model, world)
    assert_same(saved_tensors(folder), saved_tensors(source))


def test_a_model_needs_memory_before_its_weights(write: Write, world: World) -> None:
    folder = write()
    assert error_of(lambda: load_pretrained(folder, build_meta_model(folder))) == (
        "the model is on the meta device; materialize it before its weights are loaded"
    )


def test_a_folder_needs_safetensors(write: Write, world: World) -> None:
    folder = write()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert error_of(lambda: loaded(folder, world)) == (
        f"{folder} has no safetensors file; weights are read from no other form"
    )


def test_every_tensor_that_does_not_fit_is_named(write: Write, world: World) -> None:
    folder = write()

    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"], tensors["lm_head.weight"]
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.zeros(31)
        tensors["visual.blocks.0.attn.qkv.weight"] = torch.zeros(16, 48)

    change(folder, spoil)
    message = error_of(lambda: loaded(folder, world))
    assert message == (
        f"{folder} lacks model.language_model.layers.1.mlp.up_proj.weight, "
        "lm_head.weight, has unknown model.layers.2.mlp.up_proj.weight, has "
        "visual.blocks.0.attn.qkv.weight as (16, 48) instead of (48, 16), "
        "model.norm.weight as (31,) instead of (32,); a checkpoint has the tensors of "
        "its model"
    )


def test_a_long_list_is_cut_short(write: Write, world: World) -> None:
    folder = write()
    change(folder, lambda tensors: [tensors.pop(k) for k in [*tensors] if "mlp" in k])
    assert "model.visual.blocks.0.mlp.fc1.weight," in error_of(
        lambda: loaded(folder, world)
    )
    assert " and 13 more;" in error_of(lambda: loaded(folder, world))


def test_a_file_too_many_is_refused(write: Write, world: World) -> None:
    folder = write()
    shutil.copyfile(folder / "model.safetensors", folder / "stale.safetensors")
    assert error_of(lambda: loaded(folder, world)) == (
        f"{folder} holds lm_head.weight in model.safetensors and stale.safetensors; "
        "each tensor is stored once"
    )


@pytest.mark.parametrize("kept", ["lm_head.weight", EMBEDDING])
def test_a_tied_weight_is_stored_once_under_either_name(
    write: Write, world: World, kept: str
) -> None:
    folder = write(tied=True)
    change(folder, lambda tensors: tensors.update({kept: tensors.pop(EMBEDDING)}))
    model = loaded(folder, world)
    expected = backbone(tied=True).lm_head.weight.float()
    assert torch.equal(whole(model.backbone.lm_head.weight), expected)
    other = EMBEDDING if kept == "lm_head.weight" else "lm_head.weight"
    change(folder, lambda tensors: tensors.update({other: tensors[kept] + 1}))
    assert error_of(lambda: loaded(folder, world)) == (
        f"{folder} holds lm_head.weight and {EMBEDDING}, which are one weight of the "
        "model; a tied weight is stored once"
    )


@pytest.mark.parametrize("shard", SHARDINGS)
@pytest.mark.parametrize("tied", [False, True])
def test_an_export_is_the_checkpoint_that_was_loaded(
    write: Write, world: World, tmp_path: Path, shard: Any, tied: bool
) -> None:
    source, folder = write(tied=tied), tmp_path / "runs" / "export"
    folder.parent.mkdir()
    model = build_meta_model(source)
    shard(model, world)
    materialize(model, world.device)
    load_pretrained(source, model)
    export_pretrained(folder, model, world)
    weights = {"model.safetensors", "model.safetensors.index.json", HEAD_FILE}
    names = {"config.json", "generation_config.json"} | weights
    assert {file.name for file in folder.iterdir()} == names
    assert [file.name for file in folder.parent.iterdir()] == ["export"]
    assert_same(saved_tensors(folder), saved_tensors(source))
    again = Qwen2VLForConditionalGeneration.from_pretrained(folder)
    assert_same(again.state_dict(), backbone(tied=tied).state_dict())
    assert torch.equal(logits(folder), logits(source))
    assert logits(source).std() > 0.1


def test_an_export_has_the_type_that_was_asked_for(
    write: Write, world: World, tmp_path: Path
) -> None:
    model = loaded(write(), world)
    with torch.no_grad():
        model.backbone.model.language_model.norm.weight.fill_(math.pi)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        folder = tmp_path / str(dtype)
        export_pretrained(folder, model, world, dtype=dtype)
        config = json.loads((folder / "config.json").read_text())
        parts = (config, config["text_config"], config["vision_config"])
        assert [f"torch.{part['dtype']}" for part in parts] == [str(dtype)] * 3
        assert config["architectures"] == ["Qwen2VLForConditionalGeneration"]
        again = Qwen2VLForConditionalGeneration.from_pretrained(folder)
        assert {weight.dtype for weight in again.parameters()} == {dtype}
        expected = {n: w.to(dtype) for n, w in model.backbone.state_dict().items()}
        assert_same(again.state_dict(), expected)
        assert {w.dtype for w in load_file(folder / HEAD_FILE).values()} == {dtype}
    assert model.backbone.config.dtype == torch.float32


def test_who_may_read_one_file_of_an_export_may_read_all(
    write: Write, world: World, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    export_pretrained(folder, loaded(write(), world), world)
    (tmp_path / "plain").touch()
    plain = (tmp_path / "plain").stat().st_mode
    modes = {file.name: file.stat().st_mode for file in folder.iterdir()}
    assert modes == dict.fromkeys(modes, plain)


def test_the_index_leaves_out_the_head(
    write: Write, world: World, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    export_pretrained(folder, loaded(write(), world), world)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    assert index["weight_map"] == dict.fromkeys(tensors, "model.safetensors")
    assert (folder / HEAD_FILE).exists()


def test_a_large_export_has_an_index(
    write: Write, world: World, tmp_path: Path
) -> None:
    source, folder = write(max_shard_size="20KB"), tmp_path / "export"
    export_pretrained(folder, loaded(source, world), world, max_file_bytes=20_000)
    name = "model.safetensors.index.json"
    found, expected = (json.loads((f / name).read_text()) for f in (folder, source))
    assert found["metadata"]["total_size"] == expected["metadata"]["total_size"]
    assert found["weight_map"].keys() == expected["weight_map"].keys()
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 2
    assert {file.name for file in files} == set(found["weight_map"].values())
    for file in files:
        with safe_open(file, framework="pt") as content:
            assert content.metadata() == {"format": "pt"}
            names = {k for k, v in found["weight_map"].items() if v == file.name}
            assert set(content.keys()) == names
        tensors = load_file(file).values()
        assert sum(tensor.nbytes for tensor in tensors) <= 20_000
    assert_same(saved_tensors(folder), saved_tensors(source))
    assert torch.equal(logits(folder), logits(source))


def test_the_head_travels_beside_the_model(
    write: Write, world: World, tmp_path: Path
) -> None:
    source, folder = write(), tmp_path / "export"
    model = loaded(source, world, seed=1)
    export_pretrained(folder, model, world, dtype=torch.float32)
    again = build_meta_model(folder)
    materialize(again, world.device, seed=2)
    assert load_pretrained(folder, again)
    assert_same(again.state_dict(), model.state_dict())
    head = load_file(folder / HEAD_FILE)
    del head[HEAD]
    save_file(head, folder / HEAD_FILE)
    assert error_of(lambda: load_pretrained(folder, again)) == (
        f"{folder} lacks {HEAD}; a checkpoint has the tensors of its model"
    )


def test_tokenizer_and_settings_of_the_source_are_copied(
    write: Write, world: World, tmp_path: Path
) -> None:
    source, folder = write(), tmp_path / "export"
    train_tokenizer(["a red ball rolls"], vocabulary_size=300).save_pretrained(source)
    (source / "generation_config.json").write_text('{"temperature": 0.25}')
    (source / "preprocessor_config.json").write_text('{"min_pixels": 3136}')
    (source / "training_args.bin").write_bytes(b"a pickle")
    (source / "trainer_state.json").write_text("{}")
    export_pretrained(folder, loaded(source, world), world, source=source)
    for name in ("generation_config", "preprocessor_config", "tokenizer"):
        file = f"{name}.json"
        assert (folder / file).read_bytes() == (source / file).read_bytes()
    assert not (folder / "training_args.bin").exists()
    assert not (folder / "trainer_state.json").exists()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode("red ball")) == "red ball"


def test_an_export_replaces_nothing_but_its_own_leftovers(
    write: Write, world: World, tmp_path: Path
) -> None:
    model, folder = loaded(write(), world), tmp_path / "export"
    leftover = tmp_path / ".export.partial"
    leftover.mkdir()
    (leftover / "model-00001-of-00009.safetensors").touch()
    export_pretrained(folder, model, world)
    assert not leftover.exists()
    assert not (folder / "model-00001-of-00009.safetensors").exists()
    before = sorted(folder.iterdir())
    message = f"{folder} exists; it is written once"
    with pytest.raises(RuntimeError, match=message):
        export_pretrained(folder, model, world)
    assert sorted(folder.iterdir()) == before
    assert not leftover.exists()
    missing = tmp_path / "no folder"
    missing.touch()
    with pytest.raises(RuntimeError, match="NotADirectoryError"):
        export_pretrained(missing / "export", model, world)
