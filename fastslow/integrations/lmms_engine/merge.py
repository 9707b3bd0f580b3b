"""Join a run's shards into weights for transformers.

``python -m fastslow.integrations.lmms_engine.merge CHECKPOINT OUTPUT`` takes the place
of ``python -m lmms_engine.merger``, which finds no room in the model for the next-frame
head.
"""

import sys
from pathlib import Path
from typing import Any

from lmms_engine.merger import FSDP2Merger  # type: ignore[import-not-found]

ADDED = ("next_frame_head.", "target_tower.")
"""What the method adds to a backbone, for training alone."""


class FastSlowMerger(FSDP2Merger):  # type: ignore[misc]
    """lmms-engine's merger, for the backbone's own weights."""

    def consolidate(self, shard_state_dicts: list[dict[str, Any]]) -> dict[str, Any]:
        """Join shards, and leave out what the method added."""
        joined = super().consolidate(shard_state_dicts)
        return {n: weight for n, weight in joined.items() if not n.startswith(ADDED)}


def main(arguments: list[str]) -> None:
    """Write the weights.

    Args:
        arguments: A ``checkpoint-N`` or the folder that it is in, and a folder to
            write.
    """
    checkpoint, output = map(Path, arguments)
    FastSlowMerger().merge(checkpoint, output_path=output)


if __name__ == "__main__":
    main(sys.argv[1:])
