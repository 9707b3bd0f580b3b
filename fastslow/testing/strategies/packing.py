"""Lengths, and what is packed and balanced by them."""

from hypothesis import strategies as st


def lengths(
    *, min_size: int = 0, max_size: int = 6, min_value: int = 0, max_value: int = 5
) -> st.SearchStrategy[list[int]]:
    """Draw the lengths of sequences, empty ones among them by default."""
    values = st.integers(min_value, max_value)
    return st.lists(values, min_size=min_size, max_size=max_size)


def packing_problems(
    *, min_items: int = 1, max_items: int = 12, max_capacity: int = 20
) -> st.SearchStrategy[tuple[list[int], int]]:
    """Draw the lengths of items and a capacity that holds each of them."""
    return st.integers(1, max_capacity).flatmap(
        lambda capacity: st.tuples(
            lengths(
                min_size=min_items, max_size=max_items, min_value=1, max_value=capacity
            ),
            st.just(capacity),
        )
    )


def balancing_problems(
    *, max_items: int = 10, max_ranks: int = 4, max_cost: int = 12, max_length: int = 6
) -> st.SearchStrategy[tuple[list[int], list[int], int, int]]:
    """Draw costs and lengths of items, a number of ranks and the room of each.

    The room may be too small for all the items, and for any one of them.

    Args:
        max_items: Items at most.
        max_ranks: Ranks at most.
        max_cost: Largest cost of an item; the least is 0.
        max_length: Largest length of an item; the least is 0.
    """
    items = st.tuples(st.integers(0, max_cost), st.integers(0, max_length))
    return st.builds(
        lambda drawn, num_ranks, capacity: (
            [cost for cost, _ in drawn],
            [length for _, length in drawn],
            num_ranks,
            capacity,
        ),
        st.lists(items, max_size=max_items),
        st.integers(1, max_ranks),
        st.integers(0, 3 * max_length),
    )
