"""The peaks that benchmarks state, on cases that are known."""

from collections.abc import Callable

import torch

MIB = 2**20


def test_peak_is_the_most_held_at_once(
    peak_bytes: Callable[[Callable[[], object]], int], device: torch.device
) -> None:
    def mebibytes(number: int) -> torch.Tensor:
        return torch.empty(number * MIB, dtype=torch.uint8, device=device)

    def work() -> None:
        first, second = mebibytes(4), mebibytes(3)
        del first
        third = mebibytes(2)
        del second, third

    assert peak_bytes(work) == 7 * MIB


def test_peak_counts_what_operations_and_gradients_allocate(
    peak_bytes: Callable[[Callable[[], object]], int], device: torch.device
) -> None:
    values = torch.ones(MIB, dtype=torch.float32, device=device, requires_grad=True)

    def work() -> None:
        # The exponential, what comes from above, and the gradient.
        values.exp().backward(torch.ones_like(values))

    assert peak_bytes(work) == 12 * MIB
