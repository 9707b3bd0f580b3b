"""Backward passes that have no derivative of their own."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

_Backward = Callable[..., Any]


def once_differentiable(of: str) -> Callable[[_Backward], _Backward]:
    """Refuse to write the graph of a backward pass.

    torch's decorator of this name refuses only where the gradient that comes in has a
    graph. That of a loss has none: a penalty on gradients would then be a constant, and
    nobody would be told.

    Args:
        of: The public function that is not differentiable twice.

    Returns:
        A decorator of the backward pass, which raises ``NotImplementedError`` where
        ``create_graph`` asks for a graph.
    """

    def guard(backward: _Backward) -> _Backward:
        @wraps(backward)
        def guarded(ctx: Any, *grads: Any) -> Any:
            if torch.is_grad_enabled():
                raise NotImplementedError(
                    f"{of} is differentiable once; create_graph asks for more"
                )
            return backward(ctx, *grads)

        return guarded

    return guard
