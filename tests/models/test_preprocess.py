"""Preprocessing equals that of transformers, and follows from metadata alone."""

import ast
import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as pil

from fastslow import count_tokens, merged_grid
from fastslow.qwen2_vl import (
    VisionGeometry,
    blank_clip,
    clip_grid,
    normalize_patches,
    patchify_clip,
    smart_resize,
)

NO_LIMITS = VisionGeometry(min_pixels=1, max_pixels=10**6)
RESIZED = VisionGeometry(min_pixels=56 * 56, max_pixels=112 * 112)
ODD = VisionGeometry(
    patch_size=5,
    temporal_patch_size=3,
    merge_size=3,
    min_pixels=1,
    max_pixels=10**6,
    mean=(0.1, 0.4, 0.7),
    std=(0.5, 0.3, 0.2),
)

sides = st.integers(1, 3000)
geometries = st.builds(
    lambda patch, temporal, merge, least, more: VisionGeometry(
        patch_size=patch,
        temporal_patch_size=temporal,
        merge_size=merge,
        min_pixels=least,
        max_pixels=least + more,
    ),
    st.integers(2, 5),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2000),
    st.integers(0, 4000),
)


def random_frames(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def processed_image(frame: Tensor, geometry: VisionGeometry) -> Tensor:
    """Give the patches that transformers makes of one still frame."""
    processor = pil.Qwen2VLImageProcessorPil(
        size={
            "shortest_edge": geometry.min_pixels,
            "longest_edge": geometry.max_pixels,
        },
        patch_size=geometry.patch_size,
        temporal_patch_size=geometry.temporal_patch_size,
        merge_size=geometry.merge_size,
        image_mean=geometry.mean,
        image_std=geometry.std,
    )
    return processor(images=[frame.numpy()], return_tensors="pt")["pixel_values"]


def pixel_values(frames: Tensor, geometry: VisionGeometry) -> Tensor:
    """Give what transformers' processor calls so."""
    return normalize_patches(patchify_clip(frames, geometry), geometry)


def grey_levels(difference: Tensor, geometry: VisionGeometry) -> Tensor:
    """Undo the scale of normalised patches: 1 is one step of an 8-bit colour."""
    std = torch.tensor(geometry.std)[:, None]
    return difference.unflatten(1, (3, -1)) * 255 * std


frame_sizes = st.tuples(sides, sides).filter(lambda size: max(size) <= 200 * min(size))
pixel_bounds = st.tuples(st.integers(1, 10**6), st.integers(0, 10**7)).map(
    lambda drawn: {"min_pixels": drawn[0], "max_pixels": sum(drawn)}
)


@given(frame_sizes, st.integers(1, 64), pixel_bounds)
def test_smart_resize__multiples(
    size: tuple[int, int], factor: int, bounds: dict[str, int]
) -> None:
    resized = smart_resize(*size, factor=factor, **bounds)
    assert all(side > 0 and side % factor == 0 for side in resized)


@given(frame_sizes, st.integers(1, 64), pixel_bounds)
@example((360, 640), 28, {"min_pixels": 100352, "max_pixels": 100352})
@example((14, 14), 28, {"min_pixels": 1, "max_pixels": 10**6 + 1})
@example((70, 42), 28, {"min_pixels": 1, "max_pixels": 10**6 + 1})
def test_smart_resize__matches_transformers(
    size: tuple[int, int], factor: int, bounds: dict[str, int]
) -> None:
    resized = smart_resize(*size, factor=factor, **bounds)
    assert resized == pil.smart_resize(*size, factor=factor, **bounds)


@pytest.mark.parametrize(
    ("height", "width"), [(1, 200), (1, 201), (200, 1), (201, 1), (2, 401), (3, 600)]
)
def test_smart_resize_refuses_the_shapes_that_transformers_refuses(
    height: int, width: int
) -> None:
    limits = {"factor": 28, "min_pixels": 3136, "max_pixels": 10**6}
    try:
        expected = pil.smart_resize(height, width, **limits)
    except ValueError:
        with pytest.raises(ValueError, match=f"frame is {height} x {width} pixels"):
            smart_resize(height, width, **limits)
    else:
        assert smart_resize(height, width, **limits) == expected


def test_smart_resize_says_what_is_wrong() -> None:
    limits = {"factor": 28, "min_pixels": 3136, "max_pixels": 10**6}
    said = (
        "^frame is 0 x 20 pixels; both sides must be at least 1 and neither over 200 "
        "times the other$"
    )
    with pytest.raises(ValueError, match=said):
        smart_resize(0, 20, **limits)
    for least, most in ((10, 9), (0, 9)):
        said = f"^min_pixels is {least} and max_pixels is {most}; they must be at least"
        with pytest.raises(ValueError, match=said):
            smart_resize(20, 20, factor=28, min_pixels=least, max_pixels=most)


@given(st.integers(1, 7), st.integers(1, 90), st.integers(1, 90), geometries)
@settings(max_examples=40, deadline=None)
def test_clip_grid__matches_patchify(
    count: int, height: int, width: int, geometry: VisionGeometry
) -> None:
    assume(max(height, width) <= 200 * min(height, width))
    frame_count, grid = clip_grid(count, height, width, geometry)
    patches = patchify_clip(random_frames(count, height, width), geometry)
    pixels = 3 * geometry.temporal_patch_size * geometry.patch_size**2
    tokens = frame_count * math.prod(grid)
    assert patches.shape == (tokens * geometry.merge_size**2, pixels)
    assert patches.dtype == torch.uint8
    assert frame_count == math.ceil(count / geometry.temporal_patch_size)


@pytest.mark.parametrize("size", [(56, 56), (84, 56), (28, 112)])
def test_patchify_clip__matches_transformers(size: tuple[int, int]) -> None:
    first, second = random_frames(2, *size)
    clip = torch.stack([first, first, second, second])
    images = [processed_image(frame, NO_LIMITS) for frame in (first, second)]
    assert clip_grid(4, *size, NO_LIMITS) == (2, (size[0] // 28, size[1] // 28))
    torch.testing.assert_close(
        pixel_values(clip, NO_LIMITS), torch.cat(images), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("size", [(112, 112), (60, 100)])
def test_patchify_clip__scales(size: tuple[int, int]) -> None:
    frames, scales = random_frames(8, *size), (1, 2, 1, 2)
    geometry = VisionGeometry(min_pixels=1, max_pixels=112 * 112, grid_multiple=2)
    _, grid = clip_grid(8, *size, geometry)
    sizes = [[28 * side // scale for side in grid] for scale in scales]
    parts = patchify_clip(frames, geometry, scales).split(
        [math.prod(pixels) // 14**2 for pixels in sizes]
    )
    for pair, part, pixels in zip(frames.split(2), parts, sizes, strict=True):
        area = math.prod(pixels)
        alone = VisionGeometry(min_pixels=area, max_pixels=area)
        resized = torch.nn.functional.interpolate(
            pair, pixels, mode="bicubic", antialias=True
        )
        assert torch.equal(part, patchify_clip(resized, alone))


def test_every_setting_of_the_geometry_counts() -> None:
    frame = random_frames(1, 30, 45)
    torch.testing.assert_close(
        pixel_values(frame.expand(3, -1, -1, -1), ODD),
        processed_image(frame[0], ODD),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("size", [(50, 77), (91, 140), (17, 20), (140, 160)])
def test_resized_frames_are_within_one_grey_level(size: tuple[int, int]) -> None:
    """Both round twice; colours stay clear of 0 and 255, where bicubic overshoots."""
    frame = random_frames(1, *size) // 2 + 64
    ours = pixel_values(frame.expand(2, -1, -1, -1), RESIZED)
    gap = grey_levels(ours - processed_image(frame[0], RESIZED), RESIZED).abs()
    assert gap.max() < 1.001
    assert gap.mean() < 0.05


def test_the_two_frames_of_a_patch_keep_their_order() -> None:
    first, second = random_frames(2, 56, 84)
    patches = pixel_values(torch.stack([first, second]), NO_LIMITS)
    by_time = patches.unflatten(1, (3, 2, -1))
    for moment, frame in enumerate((first, second)):
        image = processed_image(frame, NO_LIMITS).unflatten(1, (3, 2, -1))
        torch.testing.assert_close(
            by_time[:, :, moment], image[:, :, moment], rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("count", [1, 3, 5])
def test_an_odd_clip_repeats_its_last_frame(count: int) -> None:
    frames = random_frames(count, 40, 60)
    filled = torch.cat([frames, frames[-1:]])
    assert torch.equal(patchify_clip(frames, RESIZED), patchify_clip(filled, RESIZED))
    still = frames[-1:].expand(2, -1, -1, -1)
    last = patchify_clip(still, RESIZED)
    assert torch.equal(patchify_clip(frames, RESIZED)[-len(last) :], last)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("size", [(56, 84), (91, 140), (300, 64), (17, 20)])
def test_clips_are_patched_as_videos(count: int, size: tuple[int, int]) -> None:
    pytest.importorskip(
        "torchvision", reason="transformers' video processor needs torchvision"
    )
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import (
        Qwen2VLVideoProcessor,
    )

    limits = {"shortest_edge": RESIZED.min_pixels, "longest_edge": RESIZED.max_pixels}
    processor = Qwen2VLVideoProcessor(size=limits, cap_pixels_per_frame=False)
    frames = random_frames(count, *size)
    expected = processor(videos=[frames], return_tensors="pt", do_sample_frames=False)
    assert torch.equal(pixel_values(frames, RESIZED), expected["pixel_values_videos"])
    frame_count, height, width = expected["video_grid_thw"][0].tolist()
    grid = merged_grid((height, width), merge_size=RESIZED.merge_size)
    assert clip_grid(count, *size, RESIZED) == (frame_count, grid)


def test_a_clip_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="num_video_frames is 0"):
        clip_grid(0, 56, 56, NO_LIMITS)
    with pytest.raises(ValueError, match="num_video_frames is 0"):
        patchify_clip(random_frames(0, 56, 56), NO_LIMITS)
    with pytest.raises(ValueError, match="frame is 1 x 300 pixels"):
        patchify_clip(random_frames(2, 1, 300), NO_LIMITS)
    crossed = replace(NO_LIMITS, max_pixels=0)
    with pytest.raises(ValueError, match="min_pixels is 1 and max_pixels is 0"):
        clip_grid(2, 56, 56, crossed)


def video_processor_defaults() -> dict[str, Any]:
    """Read the class's own settings off its source: importing it needs torchvision."""
    spec = find_spec("transformers.models.qwen2_vl.video_processing_qwen2_vl")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "Qwen2VLVideoProcessor"
    )
    values = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            source = ast.unparse(node.value)
            values[node.targets[0].id] = eval(source, vars(pil).copy())
        if len(values) == 13:
            break
    return values


def test_the_default_geometry_is_that_of_transformers() -> None:
    geometry = VisionGeometry()
    video = video_processor_defaults()
    assert geometry == VisionGeometry(
        patch_size=video["patch_size"],
        temporal_patch_size=video["temporal_patch_size"],
        merge_size=video["merge_size"],
        min_pixels=video["size"]["shortest_edge"],
        max_pixels=video["size"]["longest_edge"],
        mean=tuple(video["image_mean"]),
        std=tuple(video["image_std"]),
    )
    vision = Qwen2VLConfig().vision_config
    assert geometry.patch_size == vision.patch_size
    assert geometry.temporal_patch_size == vision.temporal_patch_size
    assert geometry.merge_size == vision.spatial_merge_size


@pytest.mark.parametrize("geometry", [NO_LIMITS, ODD])
def test_normalize_patches__invertible(geometry: VisionGeometry) -> None:
    patches = patchify_clip(random_frames(2, 56, 84), geometry)
    values = normalize_patches(patches, geometry).unflatten(1, (3, -1)).double()
    found = [
        255 * (values[:, colour] * geometry.std[colour] + geometry.mean[colour])
        for colour in range(3)
    ]
    back = torch.stack(found, 1).flatten(1)
    torch.testing.assert_close(back, patches.double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("geometry", [NO_LIMITS, ODD])
def test_blank_clip__one_token(geometry: VisionGeometry) -> None:
    span, patches = blank_clip(geometry)
    side = geometry.patch_size * geometry.merge_size
    frame = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    assert count_tokens([span]) == 1
    assert patches.shape == patchify_clip(frame, geometry).shape
    assert not patches.any()
