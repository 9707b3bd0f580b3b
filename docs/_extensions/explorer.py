"""The explorer's page: its scripts, and the cases that its rule is compared with.

The library answers each case while the pages are built, and the answers are written to
``_static/explorer/cases.json``.
"""

import json
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from fastslow import (
    FrameWindow,
    Span,
    TextSpan,
    TokenLayout,
    VideoSpan,
    build_layout,
    build_schedule,
    visible_keys,
    visible_pairs,
)

Settings = dict[str, Any]

PAGE = "explorer"
FOLDER = "explorer"
CASES = 300


def make_cases() -> list[dict[str, Any]]:
    """Give the settings of every case with the library's answers."""
    draw = Random(7)
    settings = [_draw_settings(draw) for _ in range(CASES)]
    return [{"settings": one, "answers": answer(one)} for one in settings]


def answer(settings: Settings) -> dict[str, Any]:
    """Ask the library for all that the page says about a row."""
    samples = [
        _sample(settings, -(-settings["frames"] // (number + 1)))
        for number in range(settings["samples"])
    ]
    row = build_layout(samples, video_token_id=9, attention=settings["attention"])
    visible = visible_keys(row, _window(settings))
    kept = [0] * len(row.input_ids)
    if visible.kept is not None:
        kept = visible.kept.is_kept.int().tolist()
    height, width = settings["height"], settings["width"]
    frames = sum(clip.schedule.num_frames for clip in row.clips)
    return {
        "kinds": _kinds(row),
        "segments": row.segment_ids.tolist(),
        "frames": row.frame_ids.tolist(),
        "ranks": row.causal_ranks.tolist(),
        "start": visible.start.tolist(),
        "stop": visible.stop.tolist(),
        "kept": kept,
        "tokens": len(row.input_ids),
        "pairs": visible_pairs(visible),
        "unpooled": height * width * frames,
        "pooled": int((row.frame_ids >= 0).sum()),
    }


def _draw_settings(draw: Random) -> Settings:
    """Draw small settings: every ratio, ragged edges, no text at all, wide windows."""
    denominator = draw.randint(1, 11)
    slow_stride = draw.randint(1, 4)
    return {
        "frames": draw.randint(1, 12),
        "ratio": [draw.randint(0, denominator), denominator],
        "strategy": draw.choice(("interleave", "first_slow", "last_slow", "uniform")),
        "slow_stride": slow_stride,
        "fast_stride": slow_stride + draw.randint(0, 4),
        "height": draw.randint(1, 9),
        "width": draw.randint(1, 9),
        "text_before": draw.randint(0, 5),
        "text_after": draw.randint(0, 5),
        "window": draw.choice((0, 1, 2, 3, draw.randint(4, 14))),
        "keep_text": draw.choice(("prefix", "all", "none")),
        "keep_slow": draw.random() < 0.5,
        "attention": draw.choice(("frame_causal", "frame_causal", "causal")),
        "samples": draw.choice((1, 1, 2, 3, 4)),
    }


def _sample(settings: Settings, frames: int) -> list[Span]:
    """Put text before and after a clip."""
    schedule = build_schedule(
        frames,
        strategy=settings["strategy"],
        slow_ratio=Fraction(*settings["ratio"]),
        slow_stride=settings["slow_stride"],
        fast_stride=settings["fast_stride"],
    )
    clip = VideoSpan(grid=(settings["height"], settings["width"]), schedule=schedule)
    before = TextSpan(token_ids=(7,) * settings["text_before"])
    return [before, clip, TextSpan(token_ids=(5,) * settings["text_after"])]


def _window(settings: Settings) -> FrameWindow | None:
    """Read the window of the settings; 0 frames are none."""
    if not settings["window"]:
        return None
    return FrameWindow(
        frames=settings["window"],
        keep_text=settings["keep_text"],
        keep_slow=settings["keep_slow"],
    )


def _kinds(row: TokenLayout) -> list[int]:
    """Say of each token whether it is text (0), slow (1) or fast (2)."""
    is_video = row.frame_ids >= 0
    return (2 * is_video.int() - row.is_slow.int()).tolist()


def _add_files(
    app: Sphinx, page: str, _template: str, _context: object, _tree: nodes.document
) -> None:
    """Give the one page its scripts and its style."""
    if page == PAGE:
        app.add_css_file(f"{FOLDER}/explorer.css")
        app.add_js_file(f"{FOLDER}/rule.js", loading_method="defer")
        app.add_js_file(f"{FOLDER}/explorer.js", loading_method="defer")


def _write_cases(app: Sphinx, error: Exception | None) -> None:
    """Leave the cases beside the scripts."""
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir, "_static", FOLDER)
        cases = json.dumps(make_cases(), separators=(",", ":"))
        (folder / "cases.json").write_text(cases)


def setup(app: Sphinx) -> dict[str, Any]:
    """Watch for the page and for the end of the build."""
    app.connect("html-page-context", _add_files)
    app.connect("build-finished", _write_cases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
