"""Laws of ``fastslow.diagnostics``."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastslow import copy_skill, direction_spread, effective_rank
from fastslow.testing import strategies as fst

losses = st.floats(0.01, 10)
features = st.tuples(st.integers(1, 6), st.integers(1, 6), fst.seeds()).map(
    lambda drawn: fst.random_values(drawn[:2], seed=drawn[2], dtype=torch.float64)
)


@given(losses)
def test_copy_skill__ends(copy_loss: float) -> None:
    assert copy_skill(0.0, copy_loss) == 1
    assert copy_skill(copy_loss, copy_loss) == 0


@given(losses, losses, losses)
def test_copy_skill__scale_free(loss: float, copy_loss: float, factor: float) -> None:
    scaled = copy_skill(factor * loss, factor * copy_loss)
    assert scaled == pytest.approx(copy_skill(loss, copy_loss))


@given(losses, losses, losses)
def test_copy_skill__falls(loss: float, more: float, copy_loss: float) -> None:
    assert copy_skill(loss + more, copy_loss) < copy_skill(loss, copy_loss)


def test_where_nothing_changes_there_is_no_skill() -> None:
    assert math.isnan(copy_skill(0.0, 0.0))


@given(features)
def test_effective_rank__bounds(vectors: Tensor) -> None:
    assert 1 - 1e-6 <= effective_rank(vectors) <= min(vectors.shape) + 1e-6


@given(features, st.floats(1e-3, 1e3))
def test_effective_rank__scale_free(vectors: Tensor, factor: float) -> None:
    torch.testing.assert_close(
        effective_rank(factor * vectors), effective_rank(vectors), rtol=1e-5, atol=0
    )


@given(features, fst.seeds())
def test_effective_rank__rotation_free(vectors: Tensor, seed: int) -> None:
    width = vectors.shape[1]
    square = fst.random_values((width, width), seed=seed, dtype=torch.float64)
    rotation = torch.linalg.qr(square).Q
    torch.testing.assert_close(
        effective_rank(vectors @ rotation), effective_rank(vectors), rtol=1e-5, atol=0
    )


@given(st.integers(1, 6), st.integers(0, 3), st.floats(0.01, 100))
def test_effective_rank__orthogonal(count: int, unused: int, length: float) -> None:
    vectors = length * torch.eye(count + unused, dtype=torch.float64)[:count]
    assert effective_rank(vectors).item() == pytest.approx(count)
    assert effective_rank(vectors.T).item() == pytest.approx(count)


@given(features, st.integers(1, 5))
def test_effective_rank__collapsed(vectors: Tensor, times: int) -> None:
    factors = torch.arange(1, times + 1, dtype=torch.float64)[:, None]
    assert effective_rank(factors * vectors[0]).item() == pytest.approx(1, abs=1e-5)


@given(features)
def test_effective_rank__matches_svd(vectors: Tensor) -> None:
    values = torch.linalg.svdvals(vectors)
    shares = [value / values.sum().item() for value in values.tolist()]
    entropy = -sum(share * math.log(share) for share in shares if share)
    assert effective_rank(vectors).item() == pytest.approx(math.exp(entropy), abs=1e-5)
    assert effective_rank(vectors.bfloat16()).dtype == torch.float64
    assert not effective_rank(vectors.requires_grad_()).requires_grad


@given(features)
def test_direction_spread__bounds(vectors: Tensor) -> None:
    assert -1e-9 <= direction_spread(vectors) <= 1
    assert direction_spread(vectors[:0]) == 0
    assert direction_spread(vectors.bfloat16()).dtype == torch.float32
    assert not direction_spread(vectors.requires_grad_()).requires_grad


@given(features, fst.seeds())
def test_direction_spread__scale_free(vectors: Tensor, seed: int) -> None:
    factors = fst.random_values((len(vectors), 1), seed=seed, dtype=torch.float64)
    scaled = (factors.abs() + 0.1) * vectors
    torch.testing.assert_close(direction_spread(scaled), direction_spread(vectors))


@given(features, fst.seeds())
def test_direction_spread__rotation_free(vectors: Tensor, seed: int) -> None:
    width = vectors.shape[1]
    square = fst.random_values((width, width), seed=seed, dtype=torch.float64)
    rotation = torch.linalg.qr(square).Q
    torch.testing.assert_close(
        direction_spread(vectors @ rotation), direction_spread(vectors)
    )


@given(st.integers(1, 6), st.integers(0, 3), st.floats(0.01, 100))
def test_direction_spread__orthogonal(count: int, unused: int, length: float) -> None:
    vectors = length * torch.eye(count + unused, dtype=torch.float64)[:count]
    assert direction_spread(vectors).item() == pytest.approx(1 - 1 / count)


@given(features, st.integers(1, 5))
def test_direction_spread__collapsed(vectors: Tensor, times: int) -> None:
    factors = torch.arange(1, times + 1, dtype=torch.float64)[:, None]
    spread = direction_spread(factors * vectors[0]).item()
    assert spread == pytest.approx(0, abs=1e-9)


@given(features)
def test_direction_spread__matches_pairs(vectors: Tensor) -> None:
    rows = [[value / math.hypot(*row) for value in row] for row in vectors.tolist()]
    cosines = [
        sum(a * b for a, b in zip(one, other, strict=True))
        for one in rows
        for other in rows
    ]
    expected = 1 - sum(cosines) / len(cosines)
    assert direction_spread(vectors).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_no_numbers_have_no_rank(value: float) -> None:
    features = torch.eye(3)
    features[1, 2] = value
    assert effective_rank(features).isnan()
