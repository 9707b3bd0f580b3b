"""Checkpoints of transformers in the shards of real gloo ranks, and what they cost.

The file is its own worker: ``torchrun`` runs it with a case and a folder. What it
exports under any sharding is compared byte for byte.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from fastslow import TextSpan, VideoSpan, repeat_strides
from fastslow.qwen2_vl import FastSlowQwen2VL, plan_row
from recipes.edge.ranks.distributed import World, process_group
from recipes.edge.weights.export import HEAD_FILE, export_pretrained
from recipes.edge.weights.loading import build_meta_model, load_pretrained, materialize

ROOT = Path(__file__).parents[2]
VIDEO_TOKEN = 9
MIB = 2**20
MAX_FILE = 400 * MIB


def checkpoint(folder: Path, seed: int, *, tied: bool, large: bool = False) -> None:
    """Let transformers write random weights in bfloat16."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {"vocab_size": 41, "hidden_size": 32, "intermediate_size": 45}
    vision = {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 2}
    if large:
        heads = {"num_attention_heads": 16, "num_key_value_heads": 4}
        sizes = {"vocab_size": 64_000, "hidden_size": 2048, "intermediate_size": 11_008}
        vision = {"depth": 4, "embed_dim": 512, "num_heads": 8, "patch_size": 14}
    rope = {"rope_type": "default", "rope_theta": 1e4}
    sections = [16, 24, 24] if large else [1, 1, 2]
    config = Qwen2VLConfig(
        text_config={
            **heads,
            **sizes,
            "num_hidden_layers": 5 if large else 3,
            "initializer_range": 0.02 if large else 0.3,
            "rope_parameters": {**rope, "mrope_section": sections},
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={**vision, "hidden_size": sizes["hidden_size"], "mlp_ratio": 2},
        video_token_id=VIDEO_TOKEN,
        image_token_id=8,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.bfloat16)
    made = Qwen2VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape) / 4)
    made.save_pretrained(folder, max_shard_size=MAX_FILE if large else 20_000)


def shard_root(model: FastSlowQwen2VL, world: World) -> None:
    fully_shard(model, mesh=world.mesh)


def shard_layers(model: FastSlowQwen2VL, world: World) -> None:
    for layer in model.backbone.model.language_model.layers:
        fully_shard(layer, mesh=world.mesh)
    fully_shard(model, mesh=world.mesh)


def shard_everything(model: FastSlowQwen2VL, world: World) -> None:
    inner = model.backbone.model
    for part in (*inner.visual.blocks, inner.visual.merger):
        fully_shard(part, mesh=world.mesh)
    shard_layers(model, world)


def hybrid(replicas: int) -> Callable[[FastSlowQwen2VL, World], None]:
    """Shard in the second axis of a mesh and copy along the first."""

    def shard(model: FastSlowQwen2VL, world: World) -> None:
        mesh = init_device_mesh(
            world.device.type,
            (replicas, world.size // replicas),
            mesh_dim_names=("replicate", "shard"),
        )
        for layer in model.backbone.model.language_model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    return shard


SHARDINGS = {
    1: {"whole": lambda model, world: None, "layers": shard_layers},
    2: {
        "root": shard_root,
        "layers": shard_layers,
        "everything": shard_everything,
        "replicas": hybrid(2),
        "one-replica": hybrid(1),
    },
}
WAYS = [(ranks, name) for ranks, ways in SHARDINGS.items() for name in ways]


def load_sharded(
    folder: Path, world: World, shard: Callable[[FastSlowQwen2VL, World], None]
) -> FastSlowQwen2VL:
    model = build_meta_model(folder)
    shard(model, world)
    materialize(model, world.device, seed=3)
    load_pretrained(folder, model)
    return model


def reshard(folder: Path, world: World) -> dict[str, Any]:
    """Worker: load and export under every sharding."""
    for tied in ("tied", "untied"):
        for name, shard in SHARDINGS[world.size].items():
            model = load_sharded(folder / tied, world, shard)
            out = folder / f"{tied}-{world.size}-{name}"
            export_pretrained(out, model, world, max_file_bytes=20_000)
            wide = out.with_name(f"{out.name}-float32")
            export_pretrained(wide, model, world, dtype=torch.float32)
    return {}


def logits(model: FastSlowQwen2VL) -> Tensor:
    """Score the trained tokens of one row."""
    clip = VideoSpan(grid=(1, 2), schedule=repeat_strides(2, (1,)))
    answer = TextSpan(token_ids=(4, 40, 0), trained=True)
    spans = (TextSpan(token_ids=(1, 2)), clip, answer)
    plan = plan_row([spans], video_token_id=VIDEO_TOKEN)
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(16, 24, generator=generator)
    found = model.eval()(patches, plan, read_logits=nn.Identity()).logits
    assert found is not None
    return found


def train(folder: Path, world: World) -> dict[str, Any]:
    """Worker: load again in the middle of a step, train, and export."""
    model = load_sharded(folder / "other", world, shard_layers)
    seen = {"other": logits(model).tolist()}
    load_pretrained(folder / "tied", model)
    scores = logits(model)
    seen["loaded"] = scores.tolist()
    export_pretrained(folder / "in-forward", model, world)
    scores.square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with torch.no_grad():
        seen["trained"] = logits(model).tolist()
    export_pretrained(folder / "trained", model, world, dtype=torch.float32)
    return seen


def fail(folder: Path, world: World) -> dict[str, Any]:
    """Worker: both ranks hear the same of a checkpoint that does not fit."""
    model = load_sharded(folder / "tied", world, shard_layers)
    seen = {}
    for name, call in {
        "load": lambda: load_pretrained(folder / "untied", model),
        "export": lambda: export_pretrained(folder / "tied", model, world),
    }.items():
        try:
            call()
        except (RuntimeError, ValueError) as error:
            seen[name] = f"{type(error).__name__}: {error}"
    return seen


def status(name: str) -> int:
    """Read a size of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


@contextmanager
def peak_memory(seen: dict[str, int], name: str) -> Iterator[None]:
    """Measure what a block adds at most to this process, in bytes.

    ``private`` is sampled and leaves out pages of mapped files, which the system can
    drop; ``resident`` is the kernel's own high-water mark and counts them.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before, resident = status("RssAnon"), status("VmRSS")
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    seen[f"{name}_private"] = max(peak, status("RssAnon")) - before
    seen[f"{name}_resident"] = status("VmHWM") - resident
    seen[f"{name}_ms"] = round(1000 * (time.perf_counter() - started))


def measure(folder: Path, world: World) -> dict[str, Any]:
    """Worker: load and export a large checkpoint and watch the memory."""
    seen: dict[str, int] = {}
    with peak_memory(seen, "load"):
        model = load_sharded(folder / "large", world, shard_layers)
    weights = list(model.parameters())
    seen["model"] = sum(weight.numel() * 4 for weight in weights)
    seen["largest"] = max(weight.numel() * 4 for weight in weights)
    seen["shards"] = sum(weight.to_local().nbytes for weight in weights)
    with peak_memory(seen, "export"):
        export_pretrained(folder / "out", model, world, max_file_bytes=MAX_FILE)
    return seen


CASES = {"reshard": reshard, "train": train, "fail": fail, "measure": measure}


Seen = list[dict[str, Any]]
Run = Callable[[str, Path, int], Seen]


@pytest.fixture(scope="module")
def run(preloaded: Any) -> Run:
    """Run a case of this file and give what each rank saw."""

    def run(case: str, folder: Path, ranks: int) -> Seen:
        log = folder / f"{case}-{ranks}.log"
        preloaded.run_ranks(ranks, __file__, case, str(folder), log=log)
        return seen_by(ranks, case, folder)

    return run


def seen_by(ranks: int, case: str, folder: Path) -> Seen:
    files = [folder / f"{case}-{rank}.json" for rank in range(ranks)]
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, and what every sharding exported of them."""
    made = tmp_path_factory.mktemp("weights")
    checkpoint(made / "tied", 1, tied=True)
    checkpoint(made / "untied", 2, tied=False)
    checkpoint(made / "other", 3, tied=True)
    for ranks in SHARDINGS:
        run("reshard", made, ranks)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in folder.glob("model*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("tied", ["tied", "untied"])
@pytest.mark.parametrize(("ranks", "name"), WAYS)
def test_every_sharding_exports_what_was_loaded(
    folder: Path, tied: str, ranks: int, name: str
) -> None:
    out = folder / f"{tied}-{ranks}-{name}"
    found, expected = tensors(out), tensors(folder / tied)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == torch.bfloat16
        assert torch.equal(found[key], value), key
    whole = folder / f"{tied}-1-whole"
    assert contents(out) == contents(whole)
    wide = out.with_name(f"{out.name}-float32")
    assert contents(wide) == contents(folder / f"{tied}-1-whole-float32")
    assert (wide / HEAD_FILE).stat().st_size > 4 * (32 + 1) * (32 + 16)


def test_weights_are_loaded_and_saved_in_the_middle_of_training(
    run: Run, folder: Path
) -> None:
    seen = run("train", folder, 2)
    assert seen[0] == seen[1]
    assert contents(folder / "in-forward") != contents(folder / "tied")
    for name, key in (("other", "other"), ("in-forward", "loaded")):
        model = build_meta_model(folder / name)
        materialize(model, torch.device("cpu"))
        with process_group():
            load_pretrained(folder / name, model)
        with torch.no_grad():
            assert logits(model).tolist() == seen[0][key]
    for key, value in tensors(folder / "tied").items():
        assert torch.equal(tensors(folder / "in-forward")[key], value)
    model = build_meta_model(folder / "trained")
    materialize(model, torch.device("cpu"))
    with process_group():
        assert load_pretrained(folder / "trained", model)
    with torch.no_grad():
        assert logits(model).tolist() == seen[0]["trained"]
    assert seen[0]["trained"] != seen[0]["loaded"] != seen[0]["other"]


def test_both_ranks_hear_the_same_of_a_failure(run: Run, folder: Path) -> None:
    before = contents(folder / "tied")
    seen = run("fail", folder, 2)
    assert seen[0] == seen[1]
    assert seen[0]["load"].startswith("ValueError: ")
    assert "lm_head.weight and model.embed_tokens.weight" in seen[0]["load"]
    assert "tied exists; it is written once" in seen[0]["export"]
    assert contents(folder / "tied") == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_no_rank_holds_the_whole_model(
    preloaded: Any, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    try:
        log = tmp_path / "write.log"
        preloaded.run(__file__, "write", str(tmp_path), log=log)
        source, out = tmp_path / "large", tmp_path / "out"
        # Ranks that are forked would share memory with others.
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", "2", __file__, "measure", str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment["CUDA_VISIBLE_DEVICES"] = ""
        subprocess.run(command, check=True, env=environment, timeout=200)
        seen = seen_by(2, "measure", tmp_path)
        for rank, sizes in enumerate(seen):
            for name, value in sizes.items():
                record_property(f"rank_{rank}_{name}", value)
            shown = (f"{k} {v / MIB:.0f} MiB" for k, v in sizes.items() if v > MIB)
            print(f"rank {rank}:", ", ".join(shown), sizes)
        model, largest = seen[0]["model"], seen[0]["largest"]
        assert model / 2 > 1.1e9
        for sizes in seen:
            assert sizes["shards"] <= 0.51 * model
            assert sizes["load_private"] <= sizes["shards"] + largest / 8
            assert sizes["load_resident"] <= 0.8 * model
            assert sizes["export_private"] <= 2 * MAX_FILE + largest
        index = "model.safetensors.index.json"
        files = json.loads((source / index).read_text())["weight_map"]
        written = json.loads((out / index).read_text())["weight_map"]
        assert files.keys() == written.keys()
        assert len(set(written.values())) > 2
        for name, file in files.items():
            with (
                safe_open(source / file, framework="pt") as expected,
                safe_open(out / written[name], framework="pt") as found,
            ):
                same = torch.equal(found.get_tensor(name), expected.get_tensor(name))
                assert same, name
    finally:
        shutil.rmtree(tmp_path)


def worker(case: str, folder: Path) -> None:
    """Run a case as one rank and write what it saw."""
    with process_group() as world:
        seen = CASES[case](folder, world)
        (folder / f"{case}-{world.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        checkpoint(Path(sys.argv[2]) / "large", 0, tied=False, large=True)
    else:
        worker(sys.argv[1], Path(sys.argv[2]))
