"""A few lengths for all rows, so that a compiled model meets a few shapes."""

from fastslow._shapes import positive, whole_number


def bucket_length(tokens: int, capacity: int, *, buckets: int, multiple_of: int) -> int:
    """Choose the length of a row: the shortest of a few that holds its tokens.

    The lengths are the equal parts of the capacity, ``capacity * k / buckets``, rounded
    up. Each costs a compiled graph; more of them cost less padding.

    Args:
        tokens: Tokens of the row, from 1 to ``capacity``.
        capacity: Tokens that a row holds at most, at least 1.
        buckets: Lengths at most, at least 1.
        multiple_of: Every length is a multiple of this many tokens, at least 1.

    Returns:
        The length that the row is padded to.

    Raises:
        ValueError: If a number is not whole, ``buckets`` or ``multiple_of`` is below 1,
            or ``tokens`` is not between 1 and ``capacity``.

    Laws:
        holds: at least the tokens, and the tokens need it: no shorter length holds
            them: ``n <= bucket_length(n) <= b for every length b >= n``
        multiple: a multiple of ``multiple_of``: ``bucket_length(n) % multiple_of == 0``
        few: all rows together have at most ``buckets`` lengths: ``len({bucket_length(n)
            for n <= capacity}) <= buckets``
        monotone: more tokens never make a row shorter: ``bucket_length(m) <=
            bucket_length(n) if m <= n``
        longest: the capacity has its own length, itself rounded up:
            ``bucket_length(capacity) == ceil(capacity / multiple_of) * multiple_of``
        waste: less padding than a part of the capacity and the rounding:
            ``bucket_length(n) - n < capacity / buckets + multiple_of``
        matches_reference: equals listing the lengths and taking the first that holds:
            ``bucket_length(n) == min(b for b in reference.bucket_lengths(...) if b >=
            n)``

    Example:
        >>> [bucket_length(n, 1000, buckets=4, multiple_of=128) for n in (9, 300, 513)]
        [256, 512, 768]
    """
    buckets = positive("buckets", buckets)
    multiple_of = positive("multiple_of", multiple_of)
    tokens = whole_number("tokens", tokens)
    capacity = whole_number("capacity", capacity)
    if not 1 <= tokens <= capacity:
        raise ValueError(
            f"tokens is {tokens}; it must be between 1 and the capacity of {capacity}"
        )
    lengths = (
        -(-capacity * part // (buckets * multiple_of)) * multiple_of
        for part in range(1, buckets + 1)
    )
    return next(length for length in lengths if length >= tokens)
