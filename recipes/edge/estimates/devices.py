"""GPUs by name: what they hold, and how fast they could be at best."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU, as its vendor describes it.

    Attributes:
        name: What settings call it.
        reported: What torch calls it, each form that it is sold in.
        memory_bytes: Its memory, in the decimal gigabytes that it is sold with; drivers
            report between 1% less and 7% more.
        bf16_flops: Products of dense bfloat16 matrices, in FLOPs per second; data
            sheets often give twice that, for sparse ones.
        source: Where both figures are from.
    """

    name: str
    reported: tuple[str, ...]
    memory_bytes: int
    bf16_flops: float
    source: str


DEVICES = (
    Device(
        name="h100-80gb",
        reported=("NVIDIA H100 80GB HBM3",),
        memory_bytes=80 * 10**9,
        bf16_flops=989.4e12,
        source="NVIDIA H100 Tensor Core GPU Architecture, H100 SXM5",
    ),
    Device(
        name="h100-pcie-80gb",
        reported=("NVIDIA H100 PCIe",),
        memory_bytes=80 * 10**9,
        bf16_flops=756e12,
        source="NVIDIA H100 Tensor Core GPU Architecture, H100 PCIe",
    ),
    Device(
        name="h200-141gb",
        reported=("NVIDIA H200",),
        memory_bytes=141 * 10**9,
        bf16_flops=989.4e12,
        source="NVIDIA H200 Tensor Core GPU datasheet, H200 SXM",
    ),
    Device(
        name="a100-80gb",
        reported=("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
        memory_bytes=80 * 10**9,
        bf16_flops=312e12,
        source="NVIDIA A100 Tensor Core GPU datasheet",
    ),
    Device(
        name="a100-40gb",
        reported=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
        memory_bytes=40 * 10**9,
        bf16_flops=312e12,
        source="NVIDIA A100 Tensor Core GPU datasheet",
    ),
    Device(
        name="l40s-48gb",
        reported=("NVIDIA L40S",),
        memory_bytes=48 * 10**9,
        bf16_flops=362.05e12,
        source="NVIDIA L40S datasheet",
    ),
    Device(
        name="b200-180gb",
        reported=("NVIDIA B200",),
        memory_bytes=180 * 10**9,
        bf16_flops=2.25e15,
        source="NVIDIA HGX B200 datasheet, one GPU of eight",
    ),
)


def find_device(name: str) -> Device:
    """Look a GPU up by the name that settings use.

    Args:
        name: Such as ``h100-80gb``.

    Returns:
        The GPU.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> find_device("h100-80gb").bf16_flops
        989400000000000.0
    """
    known = {device.name: device for device in DEVICES}
    if name not in known:
        raise ValueError(
            f"device is {name!r}; the GPU that a dry run is for must be one of "
            f"{', '.join(known)}"
        )
    return known[name]


def this_device(device: torch.device) -> Device | None:
    """Recognise the GPU that computes.

    Args:
        device: Where this rank computes.

    Returns:
        The GPU; None on a CPU, and for a GPU that is not listed.
    """
    if device.type != "cuda":
        return None
    reported = torch.cuda.get_device_name(device)
    return next((each for each in DEVICES if reported in each.reported), None)
