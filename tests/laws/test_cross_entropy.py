"""Laws of ``fastslow.cross_entropy``."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from fastslow import (
    IGNORED_LABEL,
    LabelPlan,
    cross_entropy,
    labelled_cross_entropy,
    to_device,
)
from fastslow.testing import reference
from fastslow.testing import strategies as fst

WIDTH, WORDS = 3, 5

labels = st.lists(
    st.one_of(st.just(IGNORED_LABEL), st.integers(0, WORDS - 1)), min_size=1, max_size=8
)
some_labels = labels.filter(lambda row: any(label >= 0 for label in row))


def plan_of(row: list[int]) -> LabelPlan:
    """Give the plan of labels that stand at the rows that predict them."""
    targets = torch.tensor(row)
    rows = (targets >= 0).nonzero()[:, 0]
    return LabelPlan(rows=rows, targets=targets[rows])


def states(tokens: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    values = fst.random_values((tokens, WIDTH), seed=seed, dtype=dtype)
    return values.requires_grad_()


def words(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    values = fst.random_values((WORDS, WIDTH), seed=seed + 1, dtype=dtype)
    return values.requires_grad_()


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@given(labels, fst.seeds())
@example(row=[0], seed=0)
@example(row=[IGNORED_LABEL], seed=0)
@example(row=[WORDS - 1, IGNORED_LABEL, WORDS - 1], seed=0)
def test_labelled_cross_entropy__matches_cross_entropy(
    row: list[int], seed: int
) -> None:
    hidden, weight = states(len(row), seed), words(seed)
    total, count = labelled_cross_entropy(hidden, weight, plan_of(row))
    expected = F.cross_entropy(
        hidden @ weight.T,
        torch.tensor(row),
        reduction="sum",
        ignore_index=IGNORED_LABEL,
    )
    assert_near(total, expected)
    assert count == sum(label >= 0 for label in row)
    assert type(count) is int
    for grad, wanted in zip(
        torch.autograd.grad(3 * total, (hidden, weight)),
        torch.autograd.grad(3 * expected, (hidden, weight)),
        strict=True,
    ):
        assert_near(grad, wanted)


@given(some_labels, fst.seeds(), st.integers(1, 9))
@example(row=[0, 1, 2], seed=0, chunks=3)
@example(row=[0, 1, 2], seed=0, chunks=2)
def test_labelled_cross_entropy__chunk_free(
    row: list[int], seed: int, chunks: int
) -> None:
    hidden, weight, plan = states(len(row), seed), words(seed), plan_of(row)
    chunked = cross_entropy._ChunkedCrossEntropy.apply(
        hidden[plan.rows], weight, plan.targets, chunks
    )
    total, _ = labelled_cross_entropy(hidden, weight, plan)
    assert_near(chunked, total)
    for _ in range(2):  # a graph that is kept gives the same gradients again
        for grad, wanted in zip(
            torch.autograd.grad(3 * chunked, (hidden, weight), retain_graph=True),
            torch.autograd.grad(3 * total, (hidden, weight), retain_graph=True),
            strict=True,
        ):
            assert_near(grad, wanted)


@given(st.integers(0, 4), fst.seeds())
def test_labelled_cross_entropy__no_labels(tokens: int, seed: int) -> None:
    hidden, weight = states(tokens, seed), words(seed)
    nothing = torch.zeros(0, dtype=torch.long)
    plan = LabelPlan(rows=nothing, targets=nothing)
    total, count = labelled_cross_entropy(hidden, weight, plan)
    assert (total, count) == (0, 0)
    grads = torch.autograd.grad(total, (hidden, weight))
    assert torch.equal(grads[0], torch.zeros_like(hidden))
    assert torch.equal(grads[1], torch.zeros_like(weight))


@given(st.lists(labels, min_size=1, max_size=3), fst.seeds())
def test_labelled_cross_entropy__additive(packed: list[list[int]], seed: int) -> None:
    weight = words(seed)
    parts = [states(len(row), seed + 2 + i) for i, row in enumerate(packed)]
    alone = [
        labelled_cross_entropy(part, weight, plan_of(row))
        for part, row in zip(parts, packed, strict=True)
    ]
    total, count = labelled_cross_entropy(
        torch.cat(parts), weight, plan_of([label for row in packed for label in row])
    )
    assert_near(total, torch.stack([part for part, _ in alone]).sum())
    assert count == sum(part for _, part in alone)


@given(labels, fst.seeds())
def test_labelled_cross_entropy__matches_reference(row: list[int], seed: int) -> None:
    hidden, weight, plan = states(len(row), seed), words(seed), plan_of(row)
    total, count = labelled_cross_entropy(hidden, weight, plan)
    expected, expected_count = reference.labelled_cross_entropy(
        hidden.tolist(),
        weight.tolist(),
        list(zip(plan.rows.tolist(), plan.targets.tolist(), strict=True)),
    )
    assert_near(total, torch.tensor(expected, dtype=torch.float64))
    assert count == expected_count


@pytest.mark.parametrize("chunk_bytes", [40, 2**28])
def test_narrow_integers_are_targets(
    chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "_CHUNK_BYTES", chunk_bytes)
    hidden, weight, plan = states(4, 0), words(0), plan_of([0, 4, 2, 1])
    narrow = LabelPlan(rows=plan.rows.int(), targets=plan.targets.int())
    total, _ = labelled_cross_entropy(hidden, weight, narrow)
    assert total == labelled_cross_entropy(hidden, weight, plan)[0]
    total.backward()


def test_the_device_follows_the_hidden_states() -> None:
    plan = to_device(plan_of([0, IGNORED_LABEL]), "meta")
    total, count = labelled_cross_entropy(
        torch.ones(2, WIDTH, device="meta"), torch.ones(5, WIDTH, device="meta"), plan
    )
    assert (total.device.type, count) == ("meta", 1)


def test_many_labels_are_measured_in_chunks() -> None:
    """Half a million logits take 2 MiB; 128 rows of them make a chunk."""
    vocabulary, tokens = 2**19, 129
    hidden = fst.random_values((tokens, 2), seed=0).requires_grad_()
    weight = fst.random_values((vocabulary, 2), seed=1)
    rows = torch.arange(tokens)
    targets = rows * 4001
    names, sums = [], []
    for taken in (slice(None), slice(0, 128), slice(128, None)):
        plan = LabelPlan(rows=rows[taken], targets=targets[taken])
        total, count = labelled_cross_entropy(hidden, weight, plan)
        assert count == len(plan.rows)
        assert total.grad_fn is not None
        names.append("Chunked" in total.grad_fn.name())
        sums.append(total)
    assert names == [True, False, False]
    torch.testing.assert_close(sums[0], sums[1] + sums[2])


@given(st.integers(0, 10_000), st.integers(1, 2**28))
@example(labelled=128, vocabulary=2**19)
@example(labelled=129, vocabulary=2**19)
@example(labelled=2, vocabulary=2**28)
def test_chunks_fit_the_bound_and_are_as_few_as_can_be(
    labelled: int, vocabulary: int
) -> None:
    chunks = cross_entropy._count_chunks(labelled, vocabulary)
    most = max(2**28 // (4 * vocabulary), 1)
    assert chunks == max(-(-labelled // most), 1)
    rows = list(cross_entropy._cut(labelled, chunks))
    assert [row for run in rows for row in range(labelled)[run]] == [*range(labelled)]
    assert len(rows) <= chunks
    assert all(len(range(labelled)[run]) <= most for run in rows)


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_reduced_in_float32(dtype: torch.dtype, chunks: int) -> None:
    row = [0, 3, 1, 4, 2]
    hidden, weight, plan = states(5, 0, dtype), words(0, dtype), plan_of(row)
    expected = F.cross_entropy(
        (hidden @ weight.T).float(), plan.targets, reduction="sum"
    )
    chunked = cross_entropy._ChunkedCrossEntropy.apply(
        hidden, weight, plan.targets, chunks
    )
    for total in (labelled_cross_entropy(hidden, weight, plan)[0], chunked):
        assert total.dtype == torch.float32
        torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
        grads = torch.autograd.grad(total, (hidden, weight))
        assert [grad.dtype for grad in grads] == [dtype, dtype]


def test_gradients_in_half_precision_are_as_good_in_many_chunks() -> None:
    tokens, vocabulary, width = 256, 2048, 16
    plan = LabelPlan(
        rows=torch.arange(tokens),
        targets=torch.arange(tokens) * 7 % vocabulary,
    )
    wide = [
        fst.random_values(shape, seed=seed).double().requires_grad_()
        for seed, shape in enumerate([(tokens, width), (vocabulary, width)])
    ]
    exact = torch.autograd.grad(labelled_cross_entropy(*wide, plan)[0], wide)
    errors = []
    for chunks in (1, 64):
        sides = [side.detach().bfloat16().requires_grad_() for side in wide]
        total = cross_entropy._ChunkedCrossEntropy.apply(*sides, plan.targets, chunks)
        found = torch.autograd.grad(total, sides)
        errors.append(
            [
                float((one - other).norm() / other.norm())
                for one, other in zip(found, exact, strict=True)
            ]
        )
    for one, many in zip(*errors, strict=True):
        assert many < 1.5 * one


@pytest.mark.parametrize("chunks", [1, 3])
def test_large_logits_do_not_overflow(chunks: int) -> None:
    hidden = (1e4 * states(5, 0, torch.float32)).detach().requires_grad_()
    weight, plan = words(0, torch.float32), plan_of([0, 3, 1, 4, 2])
    total = cross_entropy._ChunkedCrossEntropy.apply(
        hidden, weight, plan.targets, chunks
    )
    expected = F.cross_entropy(hidden @ weight.T, plan.targets, reduction="sum")
    torch.testing.assert_close(total, expected)
    for grad, wanted in zip(
        torch.autograd.grad(total, (hidden, weight)),
        torch.autograd.grad(expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_means_the_same_in_both_passes(
    dtype: torch.dtype, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = (8 * states(5, 0, dtype)).detach().requires_grad_()
    weight, plan = words(0, dtype), plan_of([0, 3, 1, 4])
    narrow = [side.to(torch.bfloat16) for side in (hidden, weight)]
    if dtype == torch.float64:  # which autocast leaves alone
        narrow = [hidden, weight]
    logits = (narrow[0] @ narrow[1].T)[:4]
    expected = F.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)),
        plan.targets,
        reduction="sum",
    )
    wanted = torch.autograd.grad(expected, (hidden, weight))
    for bound in (cross_entropy._CHUNK_BYTES, 1):
        monkeypatch.setattr(cross_entropy, "_CHUNK_BYTES", bound)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total, _ = labelled_cross_entropy(hidden, weight, plan)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            grads = torch.autograd.grad(total, (hidden, weight))
        torch.testing.assert_close(total, expected)
        for grad, want in zip(grads, wanted, strict=True):
            torch.testing.assert_close(grad, want, rtol=1e-2, atol=1e-3)
            assert grad.dtype == dtype


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_gets_no_gradient(frozen: int) -> None:
    sides = [states(4, 0), words(0)]
    sides[frozen].requires_grad_(False)
    plan = plan_of([0, 1, 2, 3])
    whole, _ = labelled_cross_entropy(sides[0], sides[1], plan)
    chunked = cross_entropy._ChunkedCrossEntropy.apply(*sides, plan.targets, 2)
    (expected,) = torch.autograd.grad(whole, sides[1 - frozen])
    chunked.backward()
    assert sides[frozen].grad is None
    found = sides[1 - frozen].grad
    assert found is not None
    assert_near(found, expected)


@pytest.mark.parametrize("chunk_bytes", [40, 2**28])
@pytest.mark.parametrize("target", [IGNORED_LABEL, -1, WORDS])
def test_a_target_that_is_no_word_is_refused(
    target: int, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "_CHUNK_BYTES", chunk_bytes)
    plan = LabelPlan(rows=torch.arange(3), targets=torch.tensor([0, target, 1]))
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        labelled_cross_entropy(states(3, 0), words(0), plan)


def test_arguments_are_left_alone() -> None:
    hidden, weight, plan = states(4, 0), words(0), plan_of([0, 1, 2, 3])
    before = hidden.detach().clone(), weight.detach().clone()
    whole, _ = labelled_cross_entropy(hidden, weight, plan)
    chunked = cross_entropy._ChunkedCrossEntropy.apply(hidden, weight, plan.targets, 3)
    (whole + chunked).backward()
    assert torch.equal(hidden, before[0])
    assert torch.equal(weight, before[1])


def test_hidden_and_weight_have_one_width() -> None:
    unchecked = getattr(labelled_cross_entropy, "__wrapped__", labelled_cross_entropy)
    with pytest.raises(ValueError) as error:
        unchecked(torch.zeros(2, 3), torch.zeros(5, 4), plan_of([1]))
    assert str(error.value) == (
        "hidden has 3 channels but weight has 4; each logit is their product"
    )


def test_hidden_and_weight_have_one_dtype_where_autocast_gives_none() -> None:
    hidden, weight = torch.zeros(2, 3).bfloat16(), torch.zeros(5, 3)
    with pytest.raises(ValueError) as error:
        labelled_cross_entropy(hidden, weight, plan_of([1]))
    assert str(error.value) == (
        "hidden is torch.bfloat16 but weight is torch.float32; both must have one "
        "dtype, or ones that autocast narrows to one"
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert labelled_cross_entropy(hidden, weight, plan_of([1]))[1] == 1
