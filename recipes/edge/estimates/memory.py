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
from recipes.edge.estimates.gathering import gathered_by_turns
from recipes.edge.training.parallel import (
    EXPENSIVE,
    checkpoint_activations,
    choose_trained,
)
from recipes.settings.parallel import Parallel


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one rank, at the moment when they are most.

    Attributes:
        parameters: Its shards of all parameters.
        gradients: Those of the gradients.
        optimizer: Those of AdamW's two averages.
        gathered: Parameters and gradients that are whole at that moment.
        activations: The step's other tensors, the row itself among them.
        host: What lives in the host's memory instead, under CPU offload.
    """

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    host: int

    @property
    def total(self) -> int:
        """Bytes on the device."""
        state = self.parameters + self.gradients + self.optimizer
        return state + self.gathered + self.activations


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
    shards = world_size // settings.replicate
    choose_trained(model, settings)
    state = shard_bytes(model, shards)
    checkpoint_activations(model, settings.activation_checkpointing)
    model.to(settings.compute_dtype)  # as FSDP gathers it
    keeps_sums = settings.cpu_offload and settings.replicate > 1
    gathered, activations = step_bytes(
        model, plan, shards=shards, keeps_sums=keeps_sums
    )
    on_host = sum(state) if settings.cpu_offload else 0
    parameters, gradients, optimizer = (0, 0, 0) if settings.cpu_offload else state
    return Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        gathered=gathered,
        activations=activations,
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


def step_bytes(
    model: FastSlowQwen2VL, plan: RowPlan, *, shards: int, keeps_sums: bool
) -> tuple[int, int]:
    """Take a step on the meta device, and find the most that it holds at a time.

    Args:
        model: On the meta device, in the dtype that computes, checkpointed or not.
        plan: The row, on the CPU.
        shards: Ranks that share one copy.
        keeps_sums: Whether there are copies that add up gradients in every row.

    Returns:
        Bytes at that moment: of parameters and gradients that are whole, and of
        everything else, the row's patches and plan among it.
    """
    meta = torch.device("meta")
    width = model.family.geometry.patch_pixels
    count = int(plan.grid_thw.prod(1).sum())
    births = _Births()
    with (
        _stand_in_attention(),
        births,
        gathered_by_turns(model, births, shards=shards, keeps_sums=keeps_sums),
    ):
        patches = torch.empty(count, width, dtype=torch.uint8, device=meta)
        on_meta = to_device(plan, meta)
        output = model(patches, on_meta)
        terms = [output.language_loss]
        if model.predicts_next_frame:
            terms += [
                next_frame_loss(features, output.targets)[0]
                for features in (output.predictions, output.copies)
            ]
        loss = torch.stack(terms[:2]).sum()
        loss.backward()
        del output, terms, loss
    return births.at_most


class _Births(TorchDispatchMode):
    """Follow the bytes of all tensors that are made inside, and of what is whole."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tensors = self._gradients = self._held = self._most = 0
        self._known = weakref.WeakSet[Any]()
        self._results = dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]]()
        self.at_most = 0, 0

    def hold(self, size: int) -> None:
        """Enter bytes of something whole that is no tensor here; less than 0 go."""
        self._held += size
        self._look()

    def keep_gradient(self, size: int) -> None:
        """Call bytes of tensors a gradient; less than 0 are none any more."""
        self._gradients += size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        call = func, *map(_looks, args), *((k, _looks(v)) for k, v in named.items())
        if call in self._results:  # most layers repeat one another
            size, stride, dtype = self._results[call]
            again = torch.empty_strided(size, stride, dtype=dtype, device="meta")
            self._born(again.untyped_storage())
            return again
        given = {
            id(leaf.untyped_storage())
            for leaf in tree_leaves((args, named))
            if isinstance(leaf, Tensor)
        }
        result = func(*args, **named)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in given and storage not in self._known:
                    self._born(storage)
                    is_whole = leaf.nbytes == storage.nbytes()
                    if leaf is result and leaf.is_meta and is_whole:
                        self._results[call] = leaf.shape, leaf.stride(), leaf.dtype
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage)
        size = storage.nbytes()
        self._tensors += size
        weakref.finalize(storage, self._died, size)
        self._look()

    def _died(self, size: int) -> None:
        self._tensors -= size

    def _look(self) -> None:
        now = self._tensors + self._held
        if now > self._most:
            whole = self._held + self._gradients
            self._most, self.at_most = now, (whole, now - whole)


def _looks(given: Any) -> Any:
    """Give what the size and the device of a result depend on, of an argument."""
    if isinstance(given, Tensor):
        return given.shape, given.stride(), given.dtype, given.device
    if isinstance(given, list | tuple):
        return type(given), *map(_looks, given)
    return type(given), given


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
