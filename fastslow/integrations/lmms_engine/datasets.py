"""lmms-engine's datasets, whose clips know when each of their frames was taken."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lmms_engine.datasets.iterable.vision_iterable_dataset import (  # type: ignore[import-not-found]
    VisionSFTIterableDataset,
)
from lmms_engine.datasets.multimodal_mixin import (  # type: ignore[import-not-found]
    VideoReader,
    cpu,
    logger,
    np,
)
from lmms_engine.datasets.naive.vision_dataset import (  # type: ignore[import-not-found]
    VisionSFTDataset,
)
from lmms_engine.mapping_func import DATASET_MAPPING  # type: ignore[import-not-found]
from lmms_engine.utils import DataUtilities  # type: ignore[import-not-found]
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SampledClip:
    """Frames of a video, and when they were taken.

    Attributes:
        frames: ``(frames, 3, height, width)``, 0 to 255.
        seconds: When each was taken.
        fps: Frames that were sampled for each second of the whole video.
    """

    frames: Tensor
    seconds: tuple[float, ...]
    fps: float


def spread_clip(frames: Tensor, fps: float) -> SampledClip:
    """Guess the times of frames of which only the rate is known.

    lmms-engine spreads them from the first frame of a video to its last, and counts
    them for each second of all of it: they are further apart than ``1 / fps``.

    Args:
        frames: ``(frames, 3, height, width)``, 0 to 255.
        fps: Frames that were sampled for each second of the whole video.

    Returns:
        The frames, the last of them at the end of the video.
    """
    gap = len(frames) / fps / max(len(frames) - 1, 1)
    seconds = tuple(number * gap for number in range(len(frames)))
    return SampledClip(frames=frames, seconds=seconds, fps=fps)


class _TimedClips:
    """Decodes as lmms-engine does, and keeps the times; no frame comes twice."""

    config: Any

    def load_video_decord(self, video_path: Any, fps: int) -> tuple[SampledClip, float]:
        """Decode the frames that lmms-engine would, in place of its own method.

        Args:
            video_path: A file, or its content.
            fps: Frames for each second, under ``video_sampling_strategy: fps``.

        Returns:
            The clip and its rate; lmms-engine passes both on.
        """
        reader = VideoReader(video_path, ctx=cpu(0), num_threads=1)
        total, rate = len(reader), reader.get_avg_fps()
        wanted = self.config.frame_num
        if self.config.video_sampling_strategy == "fps":
            wanted = DataUtilities.smart_nframes(total, video_fps=rate, fps=fps)
        # Of a clip with fewer frames than that, it would give some of them again.
        indices = np.unique(np.linspace(0, total - 1, wanted, dtype=int)).tolist()
        frames = torch.from_numpy(reader.get_batch(indices).asnumpy())
        clip = SampledClip(
            frames=frames.permute(0, 3, 1, 2),
            seconds=tuple(index / rate for index in indices),
            fps=len(indices) / total * rate,
        )
        return clip, clip.fps


class FastSlowVision(_TimedClips, VisionSFTDataset):  # type: ignore[misc]
    """What ``dataset_type: vision`` stands for in a run of ours."""


class FastSlowVisionIterable(_TimedClips, VisionSFTIterableDataset):  # type: ignore[misc]
    """What ``dataset_type: vision_iterable`` stands for in a run of ours.

    What does not fit a pack is named, and a sample that was handed over is not handed
    over again after a restart.
    """

    overlong = 0
    """Samples of this pass that did not fit a pack."""

    ahead = 0
    """Samples that were handed over and are not counted as such by lmms-engine."""

    def get_one_sample(
        self, index: int, data_folder: Any = None, data_list: Any = None
    ) -> dict[str, Tensor]:
        """Read a sample, which lmms-engine does in its loop.

        Raises:
            ValueError: If it does not fit a pack. lmms-engine logs the error and goes
                on, where it would drop the sample without a word.
        """
        sample: dict[str, Tensor] = super().get_one_sample(
            index, data_folder, data_list
        )
        tokens, most = len(sample["input_ids"]), self.config.packing_length
        if self.config.packing and self.config.filter_overlong and tokens > most:
            self.overlong += 1
            raise ValueError(
                f"sample {index} of this process has {tokens} tokens; packing_length "
                f"is {most}"
            )
        return sample

    def __iter__(self) -> Iterator[Any]:
        """Go once through the samples of this process."""
        self.overlong = self.ahead = 0
        for given in super().__iter__():
            self.ahead = 0 if self.config.packing else 1
            yield given
            self.ahead = 0
        if self.overlong:
            logger.warning(
                f"{self.overlong} samples were skipped: they have more tokens than "
                f"packing_length, {self.config.packing_length}"
            )

    def state_dict(self) -> dict[str, int]:
        """Say where to go on: after what was handed over."""
        return {"cur_idx": self.cur_idx + self.ahead}


def take_over_datasets() -> None:
    """Let lmms-engine build these datasets in this process, under its own names."""
    DATASET_MAPPING["vision"] = FastSlowVision
    DATASET_MAPPING["vision_iterable"] = FastSlowVisionIterable
