"""A rank's part of a tensor that may be sharded."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local_part(tensor: Tensor) -> Tensor:
    """Give what this rank holds of a tensor; all of one that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def on_mesh(tensor: Tensor) -> Tensor:
    """Give a tensor whose parts lie on the device over which the ranks talk.

    Parts that are offloaded lie in host memory, which NCCL does not reach.
    """
    if isinstance(tensor, DTensor):
        return tensor.to(tensor.device_mesh.device_type)
    return tensor


def copy_whole(target: Tensor, whole: Tensor) -> None:
    """Copy a tensor that every rank holds whole into one that may be sharded.

    Args:
        target: Changed in place, wherever its parts are kept.
        whole: The same on every rank, on any device.
    """
    if isinstance(target, DTensor):
        mesh, placements = target.device_mesh, target.placements
        whole = distribute_tensor(whole, mesh, placements, src_data_rank=None)
    local_part(target).copy_(local_part(whole))
