"""When parameters and gradients are whole, as ``fully_shard`` makes them whole.

A model that is not sharded computes; around each of its blocks the bytes that FSDP2
would hold are entered into an account and taken out again. Nothing is gathered.

FSDP2 gathers a block into one flat buffer and copies that into parameters. It keeps the
buffer until the next block has its own; in the backward pass it fetches the next buffer
while a block computes. Gradients of a block are widened into one buffer, which goes
to their owners while the next block computes. The root's own parameters stay whole from
the forward pass to the end of the backward pass, and their gradients go last.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from fastslow.qwen2_vl import FastSlowQwen2VL
from recipes.edge.training.parallel import blocks_of

REDUCED = 4
"""Bytes of a gradient on its way to its owners: they are added up in float32."""


class Account(Protocol):
    """Where bytes are entered."""

    def hold(self, size: int) -> None:
        """Enter bytes that are neither a tensor of the step nor part of a shard."""

    def keep_gradient(self, size: int) -> None:
        """Note that a tensor of the step is a whole gradient."""


@contextmanager
def gathered_by_turns(
    model: FastSlowQwen2VL, account: Account, *, shards: int, keeps_sums: bool
) -> Iterator[None]:
    """Enter what is whole, and drop gradients when FSDP2 would.

    The row is a later one of a step, so its gradients are added to shards that are
    there. Copies of the model change nothing where they add up gradients once a step,
    see ``all_reduce_once``: the shards of rows before the last are as large as the
    gradients that they become. Where copies add up in every row, FSDP2 keeps the sums
    on the device to the end of the row's backward pass.

    Args:
        model: Whole, in the dtype that computes, with what trains. One row is taken
            inside; its gradients are dropped.
        account: Where the bytes go.
        shards: Ranks that share one copy.
        keeps_sums: Whether there are copies that add up in every row.
    """
    turns = _Turns(model, account, shards, keeps_sums)
    with ExitStack() as hooks:
        for hook in turns.hooks(model):
            hooks.callback(hook.remove)
        yield
        turns.end_step()


class _Part:
    """The parameters that are gathered together: those of a block, or the root's."""

    def __init__(self, parameters: list[nn.Parameter], shards: int) -> None:
        self.trained = [each for each in parameters if each.requires_grad]
        self.whole = sum(each.nbytes for each in parameters)
        self.flat = self.whole if shards > 1 else 0  # a single rank copies at once
        self.reduced = REDUCED * sum(each.numel() for each in self.trained)
        self.is_done = False


class _Turns:
    """Which blocks are whole now, which is fetched, and what is being reduced."""

    def __init__(
        self, model: FastSlowQwen2VL, account: Account, shards: int, keeps_sums: bool
    ) -> None:
        blocks = list(blocks_of(model))
        self.parts = {
            block: _Part(list(block.parameters()), shards) for block in blocks
        }
        inside = {id(each) for block in blocks for each in block.parameters()}
        own = [each for each in model.parameters() if id(each) not in inside]
        self.root = _Part(own, shards)
        self.account, self.shards, self.keeps_sums = account, shards, keeps_sums
        self.order: list[_Part] = []
        self.fetched = dict[_Part, int]()
        self.copied = self.reducing = self.added_up = 0
        self.turn: _Part | None = None

    def hooks(self, model: FastSlowQwen2VL) -> Iterator[Any]:
        """Watch the model, its blocks and its gradients."""
        yield model.register_forward_pre_hook(lambda *_: self._gather(self.root))
        yield model.register_forward_hook(lambda *_: self._end_forward())
        for block, part in self.parts.items():
            yield block.register_forward_pre_hook(self._before(part))
            yield block.register_forward_hook(self._after(part))
        for part in (self.root, *self.parts.values()):
            for parameter in part.trained:
                yield parameter.register_post_accumulate_grad_hook(self._arrive(part))

    def end_step(self) -> None:
        """Reduce what is left, the root's own gradients last."""
        self._end_backward(self.turn)
        self.account.hold(-sum(self.fetched.values()))
        self.turn = self.root
        self._end_backward(self.root)
        self.account.hold(-self.reducing - self.added_up)

    def _before(self, part: _Part) -> Any:
        def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._gather(part)
            if inputs[0].requires_grad:
                inputs[0].register_hook(lambda _: self._end_backward(part))

        return gather

    def _after(self, part: _Part) -> Any:
        def release(_: nn.Module, __: Any, output: Any) -> None:
            self.account.hold(-part.whole)
            self.order.append(part)
            first = output if isinstance(output, Tensor) else output[0]
            if first.requires_grad:
                first.register_hook(lambda _: self._begin_backward(part))

        return release

    def _arrive(self, part: _Part) -> Any:
        def keep(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.account.keep_gradient(parameter.grad.nbytes)
            if part.is_done:
                self._drop(parameter)

        return keep

    def _drop(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.account.keep_gradient(-parameter.grad.nbytes)
            parameter.grad = None

    def _gather(self, part: _Part) -> None:
        self.account.hold(part.flat)
        self.account.hold(-self.copied)
        self.account.hold(part.whole)
        self.copied = part.flat

    def _end_forward(self) -> None:
        self.account.hold(-self.copied)
        self.copied = 0
        if self.order:
            self._fetch(self.order[-1])

    def _fetch(self, part: _Part) -> None:
        if part not in self.fetched:
            self.fetched[part] = part.flat
            self.account.hold(part.flat)

    def _begin_backward(self, part: _Part) -> None:
        self._end_backward(self.turn)
        self.turn = part
        self._fetch(part)
        self.account.hold(part.whole)
        self.account.hold(-self.fetched.pop(part))
        before = self.order.index(part) - 1
        if before >= 0:
            self._fetch(self.order[before])

    def _end_backward(self, part: _Part | None) -> None:
        if part is None or self.turn is not part:
            return
        self.turn, part.is_done = None, True
        self.account.hold(-part.whole)
        if not part.trained:
            return
        self.account.hold(part.reduced - self.reducing)
        self.reducing = part.reduced
        for parameter in part.trained:
            self._drop(parameter)
        mine = part.reduced // self.shards
        self.account.hold(mine)
        if self.keeps_sums:
            self.added_up += mine
        else:
            self.account.hold(-mine)
