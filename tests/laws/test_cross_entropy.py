"""Laws of ``fastslow.cross_entropy``."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastslow import LabelPlan, cross_entropy, labelled_cross_entropy
from fastslow.testing import strategies as fst

TOKENS, DIM, VOCABULARY = 6, 4, 5

labels = st.lists(
    st.none() | st.integers(0, VOCABULARY - 1), min_size=TOKENS, max_size=TOKENS
)
"""What each token predicts, None where nothing is trained."""


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    hidden, weight = (
        fst.random_values(shape, seed=seed + i, dtype=torch.float64).requires_grad_()
        for i, shape in enumerate([(TOKENS, DIM), (VOCABULARY, DIM)])
    )
    return hidden, weight


def plan_of(targets: list[int | None]) -> LabelPlan:
    rows = [row for row, target in enumerate(targets) if target is not None]
    return LabelPlan(
        rows=torch.tensor(rows, dtype=torch.long),
        targets=torch.tensor([t for t in targets if t is not None], dtype=torch.long),
    )


def loss_and_gradients(seed: int, plan: LabelPlan) -> list[Tensor]:
    hidden, weight = inputs(seed)
    total, count = labelled_cross_entropy(hidden, weight, plan)
    assert count == len(plan.rows)
    return [total, *torch.autograd.grad(3 * total, (hidden, weight))]


@given(labels, fst.seeds())
def test_labelled_cross_entropy__matches_full(
    targets: list[int | None], seed: int
) -> None:
    hidden, weight = inputs(seed)
    every = torch.tensor([-100 if target is None else target for target in targets])
    total = F.cross_entropy(hidden @ weight.T, every, reduction="sum")
    expected = [total, *torch.autograd.grad(3 * total, (hidden, weight))]
    torch.testing.assert_close(loss_and_gradients(seed, plan_of(targets)), expected)


@given(labels, fst.seeds(), st.integers(0, TOKENS))
def test_labelled_cross_entropy__additive(
    targets: list[int | None], seed: int, cut: int
) -> None:
    parts = (
        [*targets[:cut], *[None] * (TOKENS - cut)],
        [*[None] * cut, *targets[cut:]],
    )
    split = [loss_and_gradients(seed, plan_of(part)) for part in parts]
    together = [torch.stack(pair).sum(0) for pair in zip(*split, strict=True)]
    torch.testing.assert_close(loss_and_gradients(seed, plan_of(targets)), together)


@pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="torch 2.13 brings the chunks"
)
@given(labels, fst.seeds())
def test_labelled_cross_entropy__chunk_free(
    targets: list[int | None], seed: int
) -> None:
    plan = plan_of(targets)
    at_once = loss_and_gradients(seed, plan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "_PLAIN_BYTES", 0)
        in_chunks = loss_and_gradients(seed, plan)
    torch.testing.assert_close(in_chunks, at_once)


@given(fst.seeds())
def test_labelled_cross_entropy__no_labels(seed: int) -> None:
    total, *gradients = loss_and_gradients(seed, plan_of([None] * TOKENS))
    assert total == 0
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("limit", [0, 2**29])
def test_half_precision_is_computed_in_float32(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "_PLAIN_BYTES", limit)
    hidden, weight = (x.detach().bfloat16().requires_grad_() for x in inputs(0))
    plan = plan_of([0, 1, 2, 3, 4, 0])
    total, _ = labelled_cross_entropy(hidden, weight, plan)
    assert total.dtype == torch.float32
    exact = F.cross_entropy(
        hidden.float() @ weight.float().T, plan.targets, reduction="sum"
    )
    torch.testing.assert_close(total, exact, rtol=2e-2, atol=0)
    total.backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
