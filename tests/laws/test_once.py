"""What is differentiable once refuses more, in place of a silent zero."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastslow import (
    cross_entropy,
    interval_attention,
    next_frame_loss,
    pack_ragged,
    visible_intervals,
)
from fastslow.testing import strategies as fst

ROWS = fst.random_values((4, 3), seed=0)


def attention(leaf: Tensor) -> Tensor:
    visible = visible_intervals(torch.arange(4), torch.zeros(4, dtype=torch.long))
    return interval_attention(
        leaf[None, None], ROWS[None, None], leaf[None, None], visible
    )


def distance(leaf: Tensor) -> Tensor:
    return next_frame_loss(leaf, pack_ragged([ROWS]))[0]


def entropy_in_chunks(leaf: Tensor) -> Tensor:
    words = fst.random_values((5, 3), seed=1)
    total: Tensor = cross_entropy._ChunkedCrossEntropy.apply(
        leaf, words, torch.arange(4), 2
    )
    return total


ONCE = {
    "interval_attention": attention,
    "next_frame_loss": distance,
    "labelled_cross_entropy": entropy_in_chunks,
}


@pytest.mark.parametrize("name", ONCE)
def test_a_penalty_on_gradients_is_no_silent_constant(name: str) -> None:
    measure: Callable[[Tensor], Tensor] = ONCE[name]
    leaf = ROWS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(measure(leaf).sum(), leaf)
    assert slope.any()
    with pytest.raises(NotImplementedError) as error:
        torch.autograd.grad(measure(leaf).sum(), leaf, create_graph=True)
    assert str(error.value) == (
        f"{name} is differentiable once; create_graph asks for more"
    )
