"""Laws of ``fastslow.ragged``."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fastslow import (
    Ragged,
    cu_seqlens_from_lengths,
    lengths_from_cu_seqlens,
    lengths_from_segment_ids,
    pack_ragged,
    position_ids_from_cu_seqlens,
    segment_ids_from_cu_seqlens,
    select_ragged,
    unpack_ragged,
)
from fastslow.testing import reference
from fastslow.testing import strategies as fst

padding = st.integers(0, 4)
int_dtypes = st.sampled_from((torch.int32, torch.int64))
features = st.lists(st.integers(1, 3), max_size=2)


def sequences_of(
    lengths: list[int], feature: list[int], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Number all items, so that no two are alike."""
    total = torch.Size([sum(lengths), *feature])
    values = torch.arange(total.numel()).reshape(total).to(dtype)
    return list(values.split(lengths)) if lengths else []


def integers(values: list[int], dtype: torch.dtype = torch.long) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@given(
    fst.lengths(min_size=1),
    features,
    st.sampled_from((torch.float64, torch.bfloat16, torch.int64)),
)
def test_pack_ragged__round_trip(
    lengths: list[int], feature: list[int], dtype: torch.dtype
) -> None:
    sequences = sequences_of(lengths, feature, dtype)
    ragged = pack_ragged(sequences)
    assert ragged.values.dtype == dtype
    assert ragged.cu_seqlens.dtype == torch.int32
    assert ragged.cu_seqlens.tolist() == reference.bounds(lengths)
    unpacked = unpack_ragged(ragged)
    assert len(unpacked) == len(sequences)
    for actual, expected in zip(unpacked, sequences, strict=True):
        assert_same(actual, expected)


@given(st.lists(fst.lengths(min_size=1, max_size=3), min_size=1, max_size=3), features)
def test_pack_ragged__associative(groups: list[list[int]], feature: list[int]) -> None:
    sequences = sequences_of([n for group in groups for n in group], feature)
    rest = iter(sequences)
    packs = [pack_ragged([next(rest) for _ in group]) for group in groups]
    outer = pack_ragged([pack.values for pack in packs])
    whole = pack_ragged(sequences)
    assert_same(outer.values, whole.values)
    shifted = [
        pack.cu_seqlens[1:] + first
        for pack, first in zip(packs, outer.cu_seqlens[:-1], strict=True)
    ]
    assert_same(torch.cat([whole.cu_seqlens[:1], *shifted]), whole.cu_seqlens)
    assert whole.cu_seqlens.tolist() == reference.bounds(map(len, sequences))


@given(fst.lengths(min_size=1), features)
def test_unpack_ragged__round_trip(lengths: list[int], feature: list[int]) -> None:
    values = torch.arange(sum(lengths)).reshape(-1, *[1] * len(feature))
    ragged = Ragged(
        values=values.expand(-1, *feature).float(),
        cu_seqlens=integers(reference.bounds(lengths), torch.int32),
    )
    packed = pack_ragged(unpack_ragged(ragged))
    assert_same(packed.values, ragged.values)
    assert_same(packed.cu_seqlens, ragged.cu_seqlens)


@given(fst.lengths(), int_dtypes)
def test_cu_seqlens_from_lengths__round_trip(
    lengths: list[int], dtype: torch.dtype
) -> None:
    bounds = cu_seqlens_from_lengths(integers(lengths, dtype))
    assert lengths_from_cu_seqlens(bounds).tolist() == lengths


@given(fst.lengths(), int_dtypes)
def test_cu_seqlens_from_lengths__bounds(
    lengths: list[int], dtype: torch.dtype
) -> None:
    bounds = cu_seqlens_from_lengths(integers(lengths, dtype))
    assert bounds.dtype == torch.int32
    assert len(bounds) == len(lengths) + 1
    assert bounds[0] == 0
    assert bounds[-1] == sum(lengths)
    assert bounds.tolist() == sorted(bounds.tolist())


@given(fst.lengths(), int_dtypes)
def test_lengths_from_cu_seqlens__round_trip(
    lengths: list[int], dtype: torch.dtype
) -> None:
    bounds = integers(reference.bounds(lengths), dtype)
    undone = lengths_from_cu_seqlens(bounds)
    assert undone.dtype == dtype
    assert cu_seqlens_from_lengths(undone).tolist() == bounds.tolist()


@given(fst.lengths(), padding, int_dtypes)
def test_segment_ids_from_cu_seqlens__round_trip(
    lengths: list[int], pad: int, dtype: torch.dtype
) -> None:
    bounds = integers(reference.bounds(lengths), dtype)
    ids = segment_ids_from_cu_seqlens(bounds, sum(lengths) + pad)
    assert lengths_from_segment_ids(ids, len(lengths)).tolist() == lengths
    pairs = reference.segments_and_places(lengths, sum(lengths) + pad)
    assert ids.tolist() == [segment for segment, _ in pairs]


@given(fst.lengths(), padding)
def test_segment_ids_from_cu_seqlens__sorted(lengths: list[int], pad: int) -> None:
    total = sum(lengths)
    bounds = integers(reference.bounds(lengths), torch.int32)
    ids = segment_ids_from_cu_seqlens(bounds, total + pad)[:total].tolist()
    assert ids == sorted(ids)
    assert set(ids) == {i for i, length in enumerate(lengths) if length}


@given(fst.lengths(), padding)
def test_segment_ids_from_cu_seqlens__padding(lengths: list[int], pad: int) -> None:
    total = sum(lengths)
    bounds = integers(reference.bounds(lengths), torch.int32)
    ids = segment_ids_from_cu_seqlens(bounds, total + pad)
    assert len(ids) == total + pad
    assert (ids[:total] >= 0).all()
    assert (ids[total:] == -1).all()


@given(fst.lengths(), padding)
def test_lengths_from_segment_ids__round_trip(lengths: list[int], pad: int) -> None:
    pairs = reference.segments_and_places(lengths, sum(lengths) + pad)
    ids = integers([segment for segment, _ in pairs])
    counted = lengths_from_segment_ids(ids, len(lengths))
    assert counted.tolist() == lengths
    bounds = cu_seqlens_from_lengths(counted)
    assert_same(segment_ids_from_cu_seqlens(bounds, len(ids)), ids)


@given(fst.lengths(), padding, int_dtypes)
def test_position_ids_from_cu_seqlens__restarts(
    lengths: list[int], pad: int, dtype: torch.dtype
) -> None:
    bounds = integers(reference.bounds(lengths), dtype)
    positions = position_ids_from_cu_seqlens(bounds, sum(lengths) + pad)
    runs = [place for length in [*lengths, pad] for place in range(length)]
    assert positions.tolist() == runs


def test_gradients_flow_back_to_every_sequence() -> None:
    sequences = [torch.zeros(n, 2, requires_grad=True) for n in (2, 0, 3)]
    values = pack_ragged(sequences).values
    (values * torch.arange(5.0)[:, None]).sum().backward()
    grads = [sequence.grad for sequence in sequences]
    assert [grad.tolist() for grad in grads if grad is not None] == [
        [[0, 0], [1, 1]],
        [],
        [[2, 2], [3, 3], [4, 4]],
    ]


def test_unpacked_sequences_are_views() -> None:
    ragged = pack_ragged([torch.zeros(2), torch.zeros(3)])
    unpack_ragged(ragged)[1].fill_(1)
    assert ragged.values.tolist() == [0, 0, 1, 1, 1]


def test_packing_copies_its_arguments() -> None:
    sequence = torch.zeros(2)
    pack_ragged([sequence]).values.fill_(1)
    assert sequence.tolist() == [0, 0]


def test_conversions_leave_their_arguments_alone() -> None:
    bounds, ids = integers([0, 2, 2, 5]), integers([0, 0, 2, -1])
    segment_ids_from_cu_seqlens(bounds, 7)
    position_ids_from_cu_seqlens(bounds, 7)
    lengths_from_cu_seqlens(bounds).fill_(9)
    lengths_from_segment_ids(ids, 3).fill_(9)
    assert bounds.tolist() == [0, 2, 2, 5]
    assert ids.tolist() == [0, 0, 2, -1]


def test_nothing_to_pack_is_an_error() -> None:
    with pytest.raises(ValueError) as error:
        pack_ragged([])
    assert str(error.value) == (
        "sequences is empty; at least one fixes dtype and shape"
    )


def test_lengths_without_values_are_added_up_all_the_same() -> None:
    lengths = integers([2, 3])
    assert cu_seqlens_from_lengths(lengths.to("meta")).shape == (3,)
    batch = torch.vmap(inspect.unwrap(cu_seqlens_from_lengths))(lengths[:, None])
    assert batch.tolist() == [[0, 2], [0, 3]]
    with FakeTensorMode():
        assert inspect.unwrap(cu_seqlens_from_lengths)(torch.ones(2).long()).ndim == 1
    traced = make_fx(inspect.unwrap(cu_seqlens_from_lengths))(lengths)
    assert traced(lengths).tolist() == [0, 2, 5]


def test_device_follows_the_input() -> None:
    bounds = integers([0, 2]).to("meta")
    assert (
        pack_ragged([torch.zeros(2, device="meta")]).cu_seqlens.device == bounds.device
    )
    assert segment_ids_from_cu_seqlens(bounds, 2).device == bounds.device
    assert position_ids_from_cu_seqlens(bounds, 2).device == bounds.device


@given(fst.lengths(min_size=1), features, st.lists(st.integers(-20, 20), max_size=6))
def test_select_ragged__matches_unpacked(
    lengths: list[int], feature: list[int], numbers: list[int]
) -> None:
    sequences = sequences_of(lengths, feature, torch.float64)
    chosen = [int(math.fmod(number, len(lengths))) for number in numbers]
    selected = select_ragged(
        pack_ragged(sequences), torch.tensor(chosen, dtype=torch.long)
    )
    assert selected.cu_seqlens.dtype == torch.int32
    unpacked = unpack_ragged(selected)
    assert len(unpacked) == len(chosen)
    for actual, number in zip(unpacked, chosen, strict=True):
        assert_same(actual, sequences[number])


@given(fst.lengths(min_size=1), features)
def test_select_ragged__identity(lengths: list[int], feature: list[int]) -> None:
    ragged = pack_ragged(sequences_of(lengths, feature, torch.float64))
    selected = select_ragged(ragged, torch.arange(len(lengths)))
    assert_same(selected.values, ragged.values)
    assert torch.equal(selected.cu_seqlens, ragged.cu_seqlens)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([], "has the ends ()"),
        ([0], "has the ends (0, 0)"),
        ([1, 3], "has the ends (1, 3)"),
        ([0, 1, 2], "has the ends (0, 2)"),
        ([0, 4], "has the ends (0, 4)"),
        ([0, 2, 1, 3], "falls by 1 along sequence 1; bounds never fall"),
    ],
)
def test_bounds_that_are_none_are_named(bounds: list[int], message: str) -> None:
    ragged = Ragged(values=torch.zeros(3), cu_seqlens=integers(bounds, torch.int32))
    with pytest.raises(ValueError) as error:
        unpack_ragged(ragged)
    rule = " but there are 3 items; it must start at 0 and end at their number"
    assert str(error.value) == f"cu_seqlens {message}{rule * ('ends' in message)}"
