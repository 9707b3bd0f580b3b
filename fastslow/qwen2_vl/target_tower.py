"""The tower's features as targets: a frozen copy gives them where the tower trains."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import nn


def copy_tower(tower: nn.Module) -> nn.Module:
    """Copy a tower and freeze the copy, without mergers, whose output is no target."""
    copy: Any = deepcopy(tower).requires_grad_(False)
    copy.merger = nn.Identity()
    if hasattr(copy, "deepstack_merger_list"):
        copy.deepstack_visual_indexes = []
        copy.deepstack_merger_list = nn.ModuleList()
    return copy  # type: ignore[no-any-return]


@torch.no_grad()
def reset_copy(copy: nn.Module, tower: nn.Module) -> None:
    """Give a copy the weights that the tower has now, sharded or not.

    Raises:
        ValueError: If the tower has others, such as adapters.
    """
    weights, copies = dict(_seeing(tower)), dict(copy.named_parameters())
    others = sorted(weights.keys() ^ copies.keys())
    if others:
        raise ValueError(
            f"the tower and its copy differ in {len(others)} parameters, such as "
            f"{others[0]}; reset the copy before adapters are put in"
        )
    for name, parameter in copies.items():
        parameter.copy_(weights[name])


def refuse_moving_targets(tower: nn.Module) -> None:
    """Raise if a tower that gives the targets itself is trained.

    Raises:
        ValueError: If it is; mergers may be, since no target passes through them.
    """
    trained = [name for name, each in _seeing(tower) if each.requires_grad]
    if trained:
        raise ValueError(
            f"{len(trained)} parameters of the tower train, such as {trained[0]}, and "
            "its features are the targets; call freeze_tower, drop_next_frame, or "
            "train_tower, which keeps a copy for them, before adapters are put in"
        )


def _seeing(tower: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Give the parameters of a tower without its mergers, by name."""
    for name, parameter in tower.named_parameters():
        if "merger" not in name:
            yield name, parameter
