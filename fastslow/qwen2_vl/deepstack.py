"""DeepStack: what Qwen3-VL's tower gives to deeper layers of the language model."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def prepare_deepstack(language_model: nn.Module) -> None:
    """Let features be added to rows that are planned.

    transformers finds the rows by a mask, which waits for a device twice a layer. It
    still does in calls that bring no plan.

    Args:
        language_model: Of a backbone; one without DeepStack stays as it is.
    """
    kind: Any = type(language_model)
    if hasattr(kind, "_deepstack_process"):
        # Unlike a method, this is pickled and copied with its module.
        add: Any = partial(_add_to_rows, kind._deepstack_process, language_model)
        language_model._deepstack_process = add


def _add_to_rows(
    add_under_mask: Any,
    language_model: nn.Module,
    hidden: Tensor,
    rows: Tensor,
    features: Tensor,
) -> Tensor:
    """Add features to hidden states, at rows or where a mask is true."""
    if rows.dtype == torch.bool:
        added: Tensor = add_under_mask(language_model, hidden, rows, features)
        return added
    return hidden.index_add(1, rows, features[None].to(hidden))
