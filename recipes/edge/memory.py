"""How much memory a training step will take on each rank, found without a GPU.

What shards hold is exact: it follows from the shapes of the parameters. What a step
holds beside them is found by taking one: the model's own code runs forward and backward
on the meta device, where tensors have sizes but no memory, and every tensor's birth and
death is counted. Only attention is exchanged, for a stand-in that keeps what the GPU's
kernels keep.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fastslow import next_frame_loss, to_device
from fastslow.qwen2_vl import (
    ATTENTION_NAME,
    TOWER_ATTENTION_NAME,
    FastSlowQwen2VL,
    RowPlan,
)
from recipes.edge.parallel import (
    EXPENSIVE,
    Parallel,
    blocks_of,
    checkpoint_activations,
    choose_trained,
)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one rank.

    Attributes:
        parameters: Its shards of all parameters.
        gradients: Those of the gradients.
        optimizer: Those of AdamW's two averages.
        gathered: Parameters and gradients that are whole while they are used.
        activations: The most that the step's other tensors take at a time.
        last: What is whole at the end of the backward pass, when the root's gradients
            are averaged and activations are gone.
        host: What lives in the host's memory instead, under CPU offload.
    """

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    last: int
    host: int

    @property
    def total(self) -> int:
        """Bytes on the device."""
        state = self.parameters + self.gradients + self.optimizer
        return state + max(self.gathered + self.activations, self.last)


def estimate_memory(
    model: FastSlowQwen2VL, settings: Parallel, plan: RowPlan, *, world_size: int
) -> Memory:
    """Estimate what a step over one packed row takes on each rank.

    Args:
        model: On the meta device, in float32, not prepared in any way; it is prepared
            here.
        settings: How it will be computed and spread.
        plan: The row, on the CPU.
        world_size: Number of ranks.

    Returns:
        The estimate. Parameters, gradients and optimizer are exact. Not counted is what
        the caching allocator loses to fragments, nor CUDA's own context.
    """
    choose_trained(model, settings)
    state = shard_bytes(model, world_size // settings.replicate)
    gathered, last = gathered_bytes(model, settings)
    checkpoint_activations(model, settings.activation_checkpointing)
    model.to(settings.compute_dtype)  # as FSDP gathers it
    activations = activation_bytes(model, plan)
    on_host = sum(state) if settings.cpu_offload else 0
    parameters, gradients, optimizer = (0, 0, 0) if settings.cpu_offload else state
    return Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        gathered=gathered,
        activations=activations,
        last=last,
        host=on_host,
    )


def shard_bytes(model: nn.Module, shards: int) -> tuple[int, int, int]:
    """Count what one rank holds of parameters, gradients and optimizer state.

    ``fully_shard`` cuts each parameter along its first axis into equal parts, the last
    ones filled up.

    Args:
        model: Whole, with its dtypes and with what trains.
        shards: Ranks that share one copy.

    Returns:
        Bytes of parameters, gradients and AdamW's two averages.
    """
    parameters = gradients = 0
    for parameter in model.parameters():
        rows = -(-len(parameter) // shards)
        size = rows * parameter[0].numel() * parameter.element_size()
        parameters += size
        gradients += size if parameter.requires_grad else 0
    return parameters, gradients, 2 * gradients


def gathered_bytes(model: FastSlowQwen2VL, settings: Parallel) -> tuple[int, int]:
    """Count what is whole at a time of parameters and gradients.

    The root's own parameters stay whole from the forward pass to the end of the
    backward pass, and so do their gradients once they are there. Of blocks there are
    two in the dtype that computes, the one that runs and the one that is fetched, and
    in the backward pass the gradient of one, once in that dtype and once in float32, on
    its way to its owners. The root's own gradients take that way last.

    Args:
        model: Whole, with what trains.
        settings: ``compute``.

    Returns:
        Bytes during the step, and at its end.
    """
    width = settings.compute_dtype.itemsize
    blocks = [list(block.parameters()) for block in blocks_of(model)]
    inside = {id(parameter) for block in blocks for parameter in block}
    root = [p for p in model.parameters() if id(p) not in inside]

    def count(parameters: list[nn.Parameter], *, trained: bool = False) -> int:
        return sum(p.numel() for p in parameters if p.requires_grad or not trained)

    whole = width * (count(root) + count(root, trained=True))
    largest = max(
        2 * width * count(block) + (width + 4) * count(block, trained=True)
        for block in blocks
    )
    return whole + largest, whole + 4 * count(root, trained=True)


def activation_bytes(model: FastSlowQwen2VL, plan: RowPlan) -> int:
    """Take a step on the meta device, and find the most that its tensors take.

    Args:
        model: On the meta device, in the dtype that computes, checkpointed or not.
        plan: The row, on the CPU.

    Returns:
        Bytes of everything but parameters and their gradients; the row's patches and
        plan are among it.
    """
    meta = torch.device("meta")
    pixels = model.family.geometry
    width = 3 * pixels.temporal_patch_size * pixels.patch_size**2
    patches = torch.empty(int(plan.grid_thw.prod(1).sum()), width, device=meta)
    on_meta = to_device(plan, meta)
    hooks = [
        parameter.register_post_accumulate_grad_hook(_forget_gradient)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    inputs = sum(leaf.nbytes for leaf in (patches, *_tensors_in(on_meta)))
    with _stand_in_attention(), _Births() as births:
        output = model(patches, on_meta)
        ahead, _ = next_frame_loss(output.predictions, output.targets)
        copying, _ = next_frame_loss(output.copies, output.targets)
        loss = output.language_loss + ahead
        loss.backward()
        del output, ahead, copying, loss
    for hook in hooks:
        hook.remove()
    return int(inputs + births.most)


def _forget_gradient(parameter: Tensor) -> None:
    """Drop a gradient as soon as it is there, as FSDP does."""
    parameter.grad = None


def _tensors_in(plan: Any) -> list[Tensor]:
    """Give the tensors of a plan, nested plans included."""
    found = []
    for value in vars(plan).values():
        if isinstance(value, Tensor):
            found.append(value)
        elif hasattr(value, "__dataclass_fields__"):
            found += _tensors_in(value)
    return found


class _Births(TorchDispatchMode):
    """Follow the bytes of all tensors that are made inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known = weakref.WeakSet[Any]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {
            id(leaf.untyped_storage())
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in given and storage not in self._known:
                    self._born(storage)
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._died, size)

    def _died(self, size: int) -> None:
        self.now -= size


@torch.library.custom_op("fastslow_dry_run::attend", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Stand in for attention; there is no memory to compute in."""
    raise NotImplementedError


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
    return torch.empty_like(query), rows


@torch.library.custom_op("fastslow_dry_run::attend_back", mutates_args=())
def _attend_back(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Stand in for the backward pass."""
    raise NotImplementedError


@_attend_back.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    """Keep what a fused kernel keeps: inputs, output, and one number for each row."""
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value, _, _ = ctx.saved_tensors
    gradients: tuple[Tensor, Tensor, Tensor] = _attend_back(grad, query, key, value)
    return gradients


_attend.register_autograd(_backward, setup_context=_keep)


def _attend_on_meta(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """Attend as transformers calls it."""
    attended, _rows = _attend(query, key, value)
    return attended.transpose(1, 2).contiguous(), None


@contextmanager
def _stand_in_attention() -> Iterator[None]:
    """Exchange attention in tower and language model, and keep its results."""
    names = (ATTENTION_NAME, TOWER_ATTENTION_NAME)
    stand_in = torch.ops.fastslow_dry_run.attend.default.name()
    EXPENSIVE.add(stand_in)
    for name in names:
        ALL_ATTENTION_FUNCTIONS[name] = _attend_on_meta
    try:
        yield
    finally:
        EXPENSIVE.discard(stand_in)
        for name in names:
            del ALL_ATTENTION_FUNCTIONS[name]
