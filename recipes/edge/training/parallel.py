"""Precision, memory and parallelism: what happens to a model before it trains.

The order is fixed: what trains, adapters, activation checkpointing, compilation,
sharding. Each wraps the one before it: the compiler then sees what is recomputed, and
the collectives of ``fully_shard`` stay outside both compiled and recomputed code.

Blocks keep their class and their place. Checkpointing and compilation replace a
block's ``forward``; a module around it would put its own name into the name of every
parameter.
"""

from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from fastslow.qwen2_vl import FastSlowQwen2VL
from recipes.edge.ranks.distributed import World
from recipes.edge.weights.lora import add_adapters
from recipes.settings.parallel import ActivationCheckpointing, Parallel


def parallelise(model: FastSlowQwen2VL, settings: Parallel, world: World) -> None:
    """Prepare a whole model for training, in place and in the right order.

    Args:
        model: Whole on every rank, with the same weights; or on the meta device, to be
            loaded afterwards.
        settings: What to do.
        world: The ranks.

    Raises:
        ValueError: If ``replicate`` does not divide the number of ranks.
    """
    mesh = sharding_mesh(world, settings.replicate)
    choose_trained(model, settings)
    checkpoint_activations(model, settings.activation_checkpointing)
    if settings.torch_compile:
        # On a GPU rows are padded to few lengths, see ClipSettings.row_buckets.
        compile_blocks(model, few_lengths=world.device.type == "cuda")
    shard(model, settings, mesh)


def choose_trained(model: FastSlowQwen2VL, settings: Parallel) -> None:
    """Decide which parameters train, add adapters, and give each its dtype.

    Args:
        model: Neither compiled nor sharded yet.
        settings: ``tower``, the ``lora`` settings and ``compute``.
    """
    if settings.tower == "trained":
        model.train_tower()
    else:
        model.freeze_tower()
    if settings.lora_rank:
        add_adapters(
            model,
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            dropout=settings.lora_dropout,
        )
    for parameter in model.parameters():
        stored = torch.float32 if parameter.requires_grad else settings.compute_dtype
        parameter.data = parameter.data.to(stored)


def checkpoint_activations(
    model: FastSlowQwen2VL, kind: ActivationCheckpointing
) -> None:
    """Let blocks recompute activations in the backward pass.

    Args:
        model: Neither compiled nor sharded yet.
        kind: See ``Parallel.activation_checkpointing``.
    """
    if kind == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for block in filter(_trains, blocks_of(model)):
        block.forward = _checkpointed(block.forward, settings)


def compile_blocks(
    model: FastSlowQwen2VL, *, few_lengths: bool = False, backend: str = "inductor"
) -> None:
    """Compile every block of tower and language model by itself.

    Blocks of a kind share their code, so one compilation serves all of them; with
    adapters there is a second, for the first block, whose input has no gradient. The
    tower, whose rows have any number of patches, has a graph for the first row and one
    for all others. A block that is checkpointed as well compiles whole or not at all:
    it stays as it is where its attention reads lengths on the host, as attention in
    tiles does.

    Args:
        model: Not sharded yet.
        few_lengths: Whether the language model has a graph for each length of a row,
            made for that length, instead of one for all lengths after the first. A
            single short row would otherwise leave all others to the slower graph.
        backend: Compiler that ``torch.compile`` uses.
    """
    # Past the limit, blocks are no longer compiled. It is counted by code object, and
    # tower and language model share one, that of the function that wraps both.
    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    for block in tower_blocks_of(model):
        is_faster = backend == "inductor" and not _trains(block)
        block.forward = torch.compile(
            block.forward, backend=backend, options=FASTER_NORMS if is_faster else None
        )
    for layer in model.backbone.model.language_model.layers:
        layer.forward = torch.compile(
            layer.forward, backend=backend, dynamic=False if few_lengths else None
        )


FASTER_NORMS: dict[str, Any] = {"triton.multi_kernel": 1}
"""Norms of 1,280 channels take half the time where one program holds a whole row, which
inductor tries beside its own choice only when it is told to. Measured in a frozen tower
alone, so only there."""

MOST_GRAPHS = 64
"""Graphs at most of all blocks together. A language model has up to four for each
length of a row: with and without adapters' gradient at its input, in training and in
evaluation; a tower up to six."""


def sharding_mesh(world: World, replicate: int) -> DeviceMesh:
    """Lay the ranks out for ``fully_shard``.

    Args:
        world: The ranks.
        replicate: Copies of the sharded model.

    Returns:
        The world's own mesh for one copy, else one with the axes ``replicate`` and
        ``shard``, where the ranks of a copy are consecutive.

    Raises:
        ValueError: If ``replicate`` does not divide the number of ranks.
    """
    check_copies(world.size, replicate)
    if replicate == 1:
        return world.mesh
    return init_device_mesh(
        world.device.type,
        (replicate, world.size // replicate),
        mesh_dim_names=("replicate", "shard"),
    )


def check_copies(ranks: int, replicate: int) -> None:
    """Refuse copies of a sharded model that do not all have as many ranks.

    Args:
        ranks: All ranks.
        replicate: Copies of the model.

    Raises:
        ValueError: If ``replicate`` does not divide the number of ranks.
    """
    if ranks % replicate:
        raise ValueError(
            f"replicate is {replicate} but there are {ranks} ranks; it must divide them"
        )


def shard(model: FastSlowQwen2VL, settings: Parallel, mesh: DeviceMesh) -> None:
    """Spread parameters over ranks: each block by itself, the rest with the root.

    Args:
        model: As ``parallelise`` takes it, everything else applied.
        settings: ``compute`` and ``cpu_offload``.
        mesh: One axis to shard over, or two: replicate, then shard.
    """
    # Nothing needs a cast on its way in: the tower casts patches itself. A cast would
    # round the tower's rotary tables and the float64 weights in a plan.
    precision = MixedPrecisionPolicy(
        param_dtype=settings.compute_dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    offload = OffloadPolicy()
    if settings.cpu_offload:
        offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    for module in (*blocks_of(model), model):
        fully_shard(module, mesh=mesh, mp_policy=precision, offload_policy=offload)


def all_reduce_once(model: nn.Module, settings: Parallel, *, is_last: bool) -> None:
    """Let only the last row of a step add up gradients between copies of the model.

    Copies are often on different nodes, and the optimizer needs the sum of all rows
    alone. Rows before the last add their gradients up within a copy, in float32, in one
    flat buffer for each block; the last row sends it. A buffer has a place for each
    parameter that got a gradient, so every row has to give all trained parameters one,
    zero or not. Rows do: one without a clip has a black one.

    Under CPU offload every row adds up between copies: the buffers would stay on the
    device until the step ends, as large as a shard of all gradients, which offload
    keeps on the host.

    Args:
        model: Sharded; one copy has nothing to add up, and computes as before.
        settings: ``cpu_offload``.
        is_last: Whether the row that comes next is the last of the step.
    """
    assert isinstance(model, FSDPModule)
    model.set_requires_all_reduce(is_last or settings.cpu_offload)


def _trains(block: nn.Module) -> bool:
    """Tell whether a block trains; no backward pass goes through the others."""
    return any(weight.requires_grad for weight in block.parameters())


def blocks_of(model: FastSlowQwen2VL) -> Iterator[nn.Module]:
    """Give the blocks of the tower, the target tower and the language model."""
    yield from tower_blocks_of(model)
    yield from model.backbone.model.language_model.layers


def tower_blocks_of(model: FastSlowQwen2VL) -> Iterator[nn.Module]:
    """Give the blocks of the tower and of the target tower."""
    yield from model.backbone.model.visual.blocks
    if model.target_tower is not None:
        yield from model.target_tower.get_submodule("blocks").children()


def _checkpointed(
    forward: Callable[..., Any], settings: dict[str, Any]
) -> Callable[..., Any]:
    """Keep only a call's inputs, and what ``settings`` say, for its backward pass."""

    @wraps(forward)
    def recomputing(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, **settings, **kwargs)

    return recomputing


EXPENSIVE = {
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
    "flex_attention",
    "inductor_compiled_code",
}
"""Operations whose results selective checkpointing keeps, by name: not every version
of torch knows all of them."""


def _policy(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep matrix products and attention."""
    if operation.name() in EXPENSIVE:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
