"""A packed row, token by token."""

from collections.abc import Sequence
from math import floor

from fastslow.testing.reference.frames import Grid, Schedule, window_centres

Words = tuple[int, ...]
Text = tuple[Words, bool]
Clip = tuple[Grid, Schedule] | tuple[Grid, Schedule, Sequence[int], Sequence[Words]]
Span = Text | Clip


def layout(
    samples: Sequence[Sequence[Span]],
    *,
    video_token_id: int,
    attention: str = "frame_causal",
    after_video_rule: str = "all_axes",
    length: int = 0,
) -> dict[str, list[int] | list[list[int]]]:
    """Lay samples end to end, token by token.

    Args:
        samples: Spans of each sample.
        video_token_id: Id of a video token.
        attention: ``frame_causal`` or ``causal``.
        after_video_rule: ``all_axes`` or ``spatial_axes``.
        length: The row is padded until it has so many tokens.

    Returns:
        The fields of a layout by name, but for the clips.
    """
    rows: list[dict[str, int]] = []
    for segment, sample in enumerate(samples):
        tokens = _sample_tokens(sample, video_token_id, after_video_rule)
        for place, token in enumerate(tokens):
            rank = token["run"] if attention == "frame_causal" else place
            rows.append(token | {"segment": segment, "rank": rank, "place": place})
    padding = dict.fromkeys(
        ("id", "rank", "slow", "place", "time", "height", "width"), 0
    )
    padding |= {"label": -100, "segment": -1, "frame": -1}
    while len(rows) < length:
        rows.append(padding)
    axes = ("place", "time", "height", "width")
    return {
        "input_ids": [row["id"] for row in rows],
        "labels": [row["label"] for row in rows],
        "segment_ids": [row["segment"] for row in rows],
        "frame_ids": [row["frame"] for row in rows],
        "is_slow": [row["slow"] for row in rows],
        "causal_ranks": [row["rank"] for row in rows],
        "position_ids": [[row[axis] for row in rows] for axis in axes],
    }


def kept_tokens(
    samples: Sequence[Sequence[Span]],
    *,
    keep_text: str,
    keep_slow: bool,
    length: int = 0,
) -> list[bool]:
    """Tell which tokens of a row never expire.

    Args:
        samples: Spans of each sample.
        keep_text: ``prefix``, ``all`` or ``none``.
        keep_slow: Whether slow frames are kept.
        length: The row is padded until it has so many tokens.

    Returns:
        One flag per token.
    """
    kept = []
    for sample in samples:
        seen_video = False
        for token in _sample_tokens(sample, 0, "all_axes"):
            is_text = token["frame"] == -1
            seen_video = seen_video or not is_text
            wanted = keep_text == "all" or (keep_text == "prefix" and not seen_video)
            kept.append((is_text and wanted) or (keep_slow and token["slow"] == 1))
    while len(kept) < length:
        kept.append(False)
    return kept


def _sample_tokens(
    sample: Sequence[Span], video_token_id: int, after_video_rule: str
) -> list[dict[str, int]]:
    """Describe each token of a sample; ``run`` numbers its text tokens and frames."""
    tokens: list[dict[str, int]] = []
    start = frame = run = 0
    for span in sample:
        match span:
            case (token_ids, bool() as trained):
                for number in token_ids:
                    tokens.append(_text_token(number, trained, start, run))
                    start, run = start + 1, run + 1
            case (grid, (num_frames, frames, edge, _), *_):
                times, between = placement(span)
                times = times or ([0] * num_frames if between else range(num_frames))
                longest = times[-1] + 1 if after_video_rule == "all_axes" else 0
                extent = max(*grid, longest)
                for number, pooled in enumerate(frames):
                    if number and between:
                        start += extent
                        for word in between[number - 1]:
                            tokens.append(_text_token(word, False, start, run))
                            start, run = start + 1, run + 1
                    what = {"id": video_token_id, "label": -100, "run": run}
                    what |= {"frame": frame + pooled[0], "slow": int(pooled[4])}
                    for row, column in window_centres(grid, pooled, edge):
                        where = {"height": start + row, "width": start + column}
                        middle = floor((pooled[0] + pooled[1] - 1) / 2)
                        where["time"] = start + times[middle]
                        tokens.append(what | where)
                    run += 1
                frame += num_frames
                start += extent
    return tokens


def placement(clip: Clip) -> tuple[Sequence[int], Sequence[Words]]:
    """Give a clip's times and the text between its frames, where it has any."""
    return (clip[2], clip[3]) if len(clip) == 4 else ((), ())


def _text_token(number: int, trained: bool, start: int, run: int) -> dict[str, int]:
    """Describe a token of text."""
    what = {"id": number, "label": number if trained else -100}
    where = {"time": start, "height": start, "width": start}
    return what | where | {"frame": -1, "slow": 0, "run": run}
