"""The global generators of a rank: seeded, and their states as JSON values."""

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor


def seed_generators(seed: int) -> None:
    """Seed all global generators of this rank."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """Give the states of all global generators of this rank, as JSON values."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    cuda_state = None
    if device.type == "cuda":
        cuda_state = _text_from_bytes(torch.cuda.get_rng_state(device))
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": _text_from_bytes(torch.get_rng_state()),
        "cuda": cuda_state,
    }


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Set the global generators of this rank to what ``random_states`` gave."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    inner = states["numpy"]["state"]
    key = np.array(inner["key"], dtype=np.uint32)
    np.random.set_state({**states["numpy"], "state": {**inner, "key": key}})
    torch.set_rng_state(_bytes_from_text(states["torch"]))
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(_bytes_from_text(states["cuda"]), device)


def _text_from_bytes(state: UInt8[Tensor, " bytes"]) -> str:
    """Write bytes as base64 text."""
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _bytes_from_text(text: str) -> UInt8[Tensor, " bytes"]:
    """Read what ``_text_from_bytes`` wrote."""
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
