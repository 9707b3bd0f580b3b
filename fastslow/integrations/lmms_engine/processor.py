"""The processor: a conversation and its decoded clips become spans and patches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lmms_engine.datasets.processor import (  # type: ignore[import-not-found]
    ProcessorConfig,
)
from lmms_engine.mapping_func import (  # type: ignore[import-not-found]
    register_processor,
)
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, AutoTokenizer
from transformers.utils import (
    IMAGE_PROCESSOR_NAME,
    PROCESSOR_NAME,
    VIDEO_PROCESSOR_NAME,
)
from transformers.utils.hub import cached_file

from fastslow.frames import FrameSchedule
from fastslow.grids import merged_stride
from fastslow.integrations.lmms_engine.config import PROCESSOR
from fastslow.integrations.lmms_engine.datasets import SampledClip, spread_clip
from fastslow.integrations.lmms_engine.rows import PIXELS, SPANS, spans_to_bytes
from fastslow.layouts import build_layout
from fastslow.qwen2_vl import (
    PlacedClip,
    clip_grid,
    encode_conversation,
    family_of,
    patchify_clip,
    place_clip,
    place_image,
)
from fastslow.qwen2_vl.chat import PLACEHOLDER
from fastslow.schedules import Strategy, build_schedule

PARTS = (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME)
"""Files of which a processor that is more than a tokenizer has at least one."""


@dataclass(frozen=True, kw_only=True)
class ProcessorSettings:
    """How a clip becomes tokens: ``extra_kwargs`` of the processor.

    Attributes:
        mm_spatial_pool_stride: Pooling stride of slow frames, in vision patches; fast
            frames use twice that.
        frame_sampling_strategy: Which frames are slow, see ``build_schedule``.
        slow_frame_ratio: Share of slow frames.
        min_pixels: Fewest pixels of a resized frame.
        max_pixels: Most pixels of a resized frame.
    """

    mm_spatial_pool_stride: int = 4
    frame_sampling_strategy: Strategy = "interleave"
    slow_frame_ratio: float = 0.5
    min_pixels: int
    max_pixels: int


def save_processor(checkpoint: str, folder: str) -> None:
    """Write the processor of a checkpoint, or its tokenizer where it has no other part.

    The recipes' ``model-N`` is such a checkpoint.

    Args:
        checkpoint: Folder or name of the checkpoint.
        folder: Where it is written.

    Raises:
        OSError: If a part that is there cannot be read.
        ValueError: If it describes no processor.
    """
    has_parts = any(
        cached_file(checkpoint, name, _raise_exceptions_for_missing_entries=False)
        for name in PARTS
    )
    kind = AutoProcessor if has_parts else AutoTokenizer
    kind.from_pretrained(checkpoint).save_pretrained(folder)


@register_processor(PROCESSOR)
class FastSlowProcessor:
    """What ``processor_type: fastslow`` of lmms-engine stands for.

    ``vision`` and ``vision_iterable`` decode a sample and hand it over; what comes back
    is all that their packers and their collator need.
    """

    def __init__(self, config: ProcessorConfig) -> None:
        """Keep the settings; ``build`` reads the checkpoint."""
        self.config = config
        self.settings = ProcessorSettings(**config.extra_kwargs)

    def build(self) -> None:
        """Read the checkpoint's tokenizer, and what its family of models is.

        Raises:
            ValueError: If a setting breaks a rule. Without that, ``vision_iterable``
                would log and skip every sample.
        """
        name = self.config.processor_name
        config = AutoConfig.from_pretrained(name)
        family = family_of(config)
        geometry = replace(
            family.geometry,
            min_pixels=self.settings.min_pixels,
            max_pixels=self.settings.max_pixels,
        )
        self.family = replace(family, geometry=geometry)
        side = geometry.token_side  # of any picture: the settings are tried out
        clip_grid(1, side, side, geometry)
        self._schedule(1)
        self.video_token_id: int = config.video_token_id
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.processor = self.tokenizer  # lmms-engine prints batches through it

    def save_pretrained(self, folder: str) -> None:
        """Write the checkpoint's own processor, for transformers."""
        save_processor(self.config.processor_name, folder)

    def process(
        self,
        images: Sequence[Any] | None,
        hf_messages: Sequence[Mapping[str, Any]],
        videos: Sequence[Any] | None = None,
        fps: float = 2.0,
    ) -> dict[str, Tensor]:
        """Turn a sample into tensors that lmms-engine's collator joins.

        Args:
            images: Pictures of PIL.
            hf_messages: Turns with ``role`` and ``content``, whose parts are text, an
                ``image`` or a ``video``.
            videos: Each a ``SampledClip``, or frames, ``(frames, 3, height, width)``,
                0 to 255, whose times are guessed.
            fps: Sampled frames per second, of a video that does not say it.

        Returns:
            ``input_ids`` with a placeholder for each pooled token, ``labels``, which
            are not shifted, the sample's spans in bytes and, where it shows something,
            its patches.

        Raises:
            ValueError: If a video has another shape, several videos share one rate
                where the backbone reads times, or as ``encode_conversation`` does.
        """
        self._check_rates(videos or ())
        shown = {
            "image": (self._picture(image) for image in images or ()),
            "video": (self._clip(video, fps) for video in videos or ()),
        }
        turns, found = list[tuple[str, str]](), list[tuple[PlacedClip, Tensor]]()
        for message in hf_messages:
            text = "".join(_write(message, shown, found))
            turns.append((message["role"], text))
        spans = encode_conversation(turns, [clip for clip, _ in found], self.tokenizer)
        layout = build_layout([spans], video_token_id=self.video_token_id)
        sample = {
            "input_ids": layout.input_ids,
            "labels": layout.labels,
            SPANS: spans_to_bytes(spans),
        }
        patches = [pixels for _, pixels in found]
        return sample | ({PIXELS: torch.cat(patches)} if patches else {})

    def _check_rates(self, videos: Sequence[Any]) -> None:
        """Refuse videos that share one rate, where the backbone reads their times."""
        reads_times = self.family.tells_time or self.family.tokens_per_second
        known = all(isinstance(video, SampledClip) for video in videos)
        if reads_times and not known and len(videos) > 1:
            raise ValueError(
                f"the sample has {len(videos)} videos; lmms-engine gives the rate of "
                "one, and this backbone reads the times of all"
            )

    def _clip(self, video: Any, fps: float) -> tuple[PlacedClip, Tensor]:
        """Plan the frames of a decoded video, and cut them into patches."""
        known = video if isinstance(video, SampledClip) else None
        frames = known.frames if known else torch.as_tensor(video)
        if frames.ndim != 4 or frames.shape[1] != 3:
            raise ValueError(
                f"a video has shape {tuple(frames.shape)}; it must be (frames, 3, "
                "height, width)"
            )
        timed = known or spread_clip(frames, fps)
        frames = frames.round().clamp(0, 255).to(torch.uint8)
        height, width = frames.shape[2:]
        count, grid = clip_grid(len(frames), height, width, self.family.geometry)
        clip = place_clip(
            grid,
            self._schedule(count),
            timed.seconds,
            family=self.family,
            encode=lambda text: self.tokenizer.encode(text, add_special_tokens=False),
            sampled_fps=timed.fps,
        )
        return clip, patchify_clip(frames, self.family.geometry)

    def _picture(self, image: Any) -> tuple[PlacedClip, Tensor]:
        """Lay out a picture: one frame that is not pooled."""
        picture = image.convert("RGB")
        values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        frames = values.reshape(1, picture.height, picture.width, 3).movedim(3, 1)
        _, grid = clip_grid(1, picture.height, picture.width, self.family.geometry)
        return place_image(grid), patchify_clip(frames, self.family.geometry)

    def _schedule(self, num_frames: int) -> FrameSchedule:
        """Choose the slow frames of a clip."""
        stride = merged_stride(
            self.settings.mm_spatial_pool_stride,
            merge_size=self.family.geometry.merge_size,
        )
        return build_schedule(
            num_frames,
            strategy=self.settings.frame_sampling_strategy,
            slow_ratio=self.settings.slow_frame_ratio,
            slow_stride=stride,
            fast_stride=2 * stride,
        )


def _write(
    message: Mapping[str, Any],
    shown: Mapping[str, Iterator[tuple[PlacedClip, Tensor]]],
    found: list[tuple[PlacedClip, Tensor]],
) -> Iterator[str]:
    """Yield the parts of a turn as text; what they show is added to ``found``.

    As in LLaVA's rows, the text may hold the places itself, ``<video>`` or ``<image>``
    for each part that shows something.
    """
    kinds = [part["type"] for part in message["content"]]
    for kind in kinds:
        if kind not in ("text", *shown):
            raise ValueError(
                f"a turn holds a part of type {kind!r}; it must be text, image or video"
            )
    texts = [part["text"] for part in message["content"] if part["type"] == "text"]
    places = PLACEHOLDER.findall("\n".join(texts))
    shows = [kind for kind in kinds if kind in shown]
    if places and places != shows:
        raise ValueError(
            f"a turn of the {message['role']} has <{places[0]}> in its text, which "
            f"holds {len(places)} places for the {len(shows)} parts that it shows; "
            "there must be one for each, in order, or none"
        )
    for part in message["content"]:
        kind = part["type"]
        if kind == "text":
            yield part["text"]
        else:
            found.append(next(shown[kind]))
            yield "" if places else f"<{kind}>"
