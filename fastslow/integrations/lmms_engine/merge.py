"""Join a run's shards into weights for transformers.

``python -m fastslow.integrations.lmms_engine.merge CHECKPOINT OUTPUT`` takes the place
of ``python -m lmms_engine.merger``, which finds no room in the model for the next-frame
head, rounds weights to bfloat16, and needs an image processor.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from lmms_engine.merger import FSDP2Merger  # type: ignore[import-not-found]
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForImageTextToText

from fastslow.integrations.lmms_engine.processor import save_processor

ADDED = ("next_frame_head.", "target_tower.")
"""What the method adds to a backbone, for training alone."""


class FastSlowMerger(FSDP2Merger):  # type: ignore[misc]
    """lmms-engine's merger, for the backbone's own weights, in the type they have."""

    def consolidate(self, shard_state_dicts: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Join shards, and leave out what the method added.

        Shards are emptied as they are joined: one weight at a time is held twice.
        """
        for shard in shard_state_dicts:
            for name in [name for name in shard if name.startswith(ADDED)]:
                del shard[name]
        return {
            name: self._join([shard.pop(name) for shard in shard_state_dicts])
            for name in list(shard_state_dicts[0])
        }

    def _join(self, shards: list[Any]) -> Tensor:
        """Join the shards of one weight; what is no shard is the same on each rank."""
        first: Tensor = shards[0]
        if not isinstance(first, DTensor):
            return first
        sizes = first.device_mesh.shape
        strides = torch.empty(sizes, device="meta").stride()
        with torch.no_grad():
            parts = [shard.to_local() for shard in shards]
        joined: Tensor = self._consolidate_multi_axis(
            parts, first.placements, sizes, strides, "a weight"
        )
        return joined

    def merge(self, checkpoint_path: Path, output_path: Path) -> Path:
        """Write the weights, and what transformers needs beside them.

        Args:
            checkpoint_path: A ``checkpoint-N``, or the folder that it is in.
            output_path: A folder to write.

        Returns:
            The folder.
        """
        checkpoint = self._resolve_checkpoint_path(checkpoint_path)
        weights = self.consolidate(self.load_shards(checkpoint))
        config = AutoConfig.from_pretrained(checkpoint)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        model.load_state_dict(weights, assign=True)
        self.maybe_tie_weights(model, config, weights)
        model.save_pretrained(output_path)
        save_processor(str(checkpoint), str(output_path))
        return output_path


def main(arguments: list[str]) -> None:
    """Write the weights.

    Args:
        arguments: A ``checkpoint-N`` or the folder that it is in, and a folder to
            write.
    """
    checkpoint, output = map(Path, arguments)
    FastSlowMerger().merge(checkpoint, output)


if __name__ == "__main__":
    main(sys.argv[1:])
