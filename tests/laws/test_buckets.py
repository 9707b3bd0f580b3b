"""Laws of ``fastslow.buckets``."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import bucket_length
from fastslow.testing import reference

problems = st.tuples(st.integers(1, 80), st.integers(1, 6), st.integers(1, 9))
"""Capacity, buckets and multiple."""


def lengths(problem: tuple[int, int, int]) -> list[int]:
    """Give the length of a row of 1 token, 2 tokens, and so on up to the capacity."""
    capacity, buckets, multiple_of = problem
    return [
        bucket_length(tokens, capacity, buckets=buckets, multiple_of=multiple_of)
        for tokens in range(1, capacity + 1)
    ]


@given(problems)
def test_bucket_length__holds(problem: tuple[int, int, int]) -> None:
    found = lengths(problem)
    for tokens, length in enumerate(found, 1):
        assert tokens <= length
        assert all(other >= length for other in found if other >= tokens)


@given(problems)
def test_bucket_length__multiple(problem: tuple[int, int, int]) -> None:
    assert all(length % problem[2] == 0 for length in lengths(problem))


@given(problems)
def test_bucket_length__few(problem: tuple[int, int, int]) -> None:
    assert len(set(lengths(problem))) <= problem[1]


@given(problems)
def test_bucket_length__monotone(problem: tuple[int, int, int]) -> None:
    found = lengths(problem)
    assert found == sorted(found)


@given(problems)
def test_bucket_length__longest(problem: tuple[int, int, int]) -> None:
    capacity, _, multiple_of = problem
    assert 0 <= lengths(problem)[-1] - capacity < multiple_of


@given(problems)
def test_bucket_length__waste(problem: tuple[int, int, int]) -> None:
    capacity, buckets, multiple_of = problem
    for tokens, length in enumerate(lengths(problem), 1):
        assert (length - tokens) * buckets < capacity + multiple_of * buckets


@given(problems)
@example((1000, 4, 128))
@example((512, 4, 128))
@example((100, 4, 128))
def test_bucket_length__matches_reference(problem: tuple[int, int, int]) -> None:
    listed = reference.bucket_lengths(*problem)
    for tokens, length in enumerate(lengths(problem), 1):
        assert length == next(each for each in listed if each >= tokens)


@pytest.mark.parametrize("name", ["buckets", "multiple_of"])
def test_there_is_a_length(name: str) -> None:
    settings = {"buckets": 1, "multiple_of": 1} | {name: 0}
    with pytest.raises(ValueError) as error:
        bucket_length(1, 1, **settings)
    assert str(error.value) == f"{name} is 0; it must be at least 1"


@pytest.mark.parametrize("tokens", [0, 9])
def test_the_tokens_fit(tokens: int) -> None:
    with pytest.raises(ValueError) as error:
        bucket_length(tokens, 8, buckets=2, multiple_of=4)
    assert str(error.value) == (
        f"tokens is {tokens}; it must be between 1 and the capacity of 8"
    )
