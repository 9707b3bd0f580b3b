"""From samples of lmms-engine's loader to the rows that the model takes.

lmms-engine's collator joins tensors along their first axis and takes nothing else. A
sample's spans therefore travel as one line of JSON, in bytes: lines end to end are
lines still.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from fastslow.qwen2_vl import Family, blank_clip, plan_row
from fastslow.schedule_json import schedule_from_json, schedule_to_json
from fastslow.spans import Span, TextSpan, VideoSpan

SPANS, PIXELS = "spans", "pixel_values_videos"
"""Where a sample holds its spans and the patches of its clips."""


def spans_to_bytes(spans: Sequence[Span]) -> UInt8[Tensor, " bytes"]:
    """Write the spans of a sample as one line of JSON.

    Args:
        spans: The spans of one sample.

    Returns:
        The line, in UTF-8, with the newline that ends it.

    Laws:
        round_trip: ``spans_from_bytes`` of any number of lines end to end gives the
            spans of each back
    """
    line = json.dumps([_to_json(span) for span in spans]) + "\n"
    return torch.frombuffer(bytearray(line.encode()), dtype=torch.uint8)


def spans_from_bytes(lines: UInt8[Tensor, " bytes"]) -> list[tuple[Span, ...]]:
    """Read the spans of samples that ``spans_to_bytes`` wrote.

    Args:
        lines: Lines end to end, on the CPU.

    Returns:
        The spans of each sample.
    """
    texts = bytes(lines.tolist()).decode().splitlines()
    return [tuple(map(_from_json, json.loads(text))) for text in texts]


def _to_json(span: Span) -> dict[str, Any]:
    """Give a span as JSON holds it."""
    if isinstance(span, TextSpan):
        return {"token_ids": span.token_ids, "trained": span.trained}
    return {
        "grid": span.grid,
        "schedule": schedule_to_json(span.schedule),
        "times": span.times,
        "between": span.between,
    }


def _from_json(content: Mapping[str, Any]) -> Span:
    """Give a span that JSON held."""
    if "token_ids" in content:
        return TextSpan(
            token_ids=tuple(content["token_ids"]), trained=content["trained"]
        )
    height, width = content["grid"]
    return VideoSpan(
        grid=(height, width),
        schedule=schedule_from_json(content["schedule"]),
        times=tuple(content["times"]),
        between=tuple(map(tuple, content["between"])),
    )


@dataclass(frozen=True, kw_only=True)
class RowCollator:
    """Plans the samples of a micro-batch as one packed row, where it is loaded.

    A micro-batch without a clip gets a blank one, so that every rank calls the vision
    tower equally often.

    Attributes:
        collate: lmms-engine's collator.
        family: What kind of model the rows are for.
        video_token_id: Id that stands for a video token.
    """

    collate: Callable[[Sequence[Any]], dict[str, Any]]
    family: Family
    video_token_id: int

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        """Join samples, and plan their row.

        Args:
            samples: What the processor made, or lists of that where the loader packs.

        Returns:
            ``patches`` and ``plan`` as ``FastSlowQwen2VL`` takes them; ``input_ids``
            and ``attention_mask``, by which lmms-engine prints and counts tokens.
        """
        batch = self.collate(samples)
        spans: list[tuple[Span, ...]] = spans_from_bytes(batch[SPANS])
        patches = batch.get(PIXELS)
        if patches is None:
            blank, patches = blank_clip(self.family.geometry)
            spans.append((blank,))
        plan = plan_row(spans, video_token_id=self.video_token_id, family=self.family)
        counted = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return counted | {"patches": patches, "plan": plan}
