"""Lengths of rows, one by one."""


def bucket_lengths(capacity: int, buckets: int, multiple_of: int) -> list[int]:
    """List the lengths that rows may have, shortest first, each once.

    Args:
        capacity: Tokens that a row holds at most.
        buckets: Parts that the capacity is cut into.
        multiple_of: Every length is counted up to a multiple of this.

    Returns:
        The lengths.
    """
    found: list[int] = []
    for part in range(1, buckets + 1):
        length = 0
        while length * buckets < capacity * part:
            length += multiple_of
        if length not in found:
            found.append(length)
    return found
