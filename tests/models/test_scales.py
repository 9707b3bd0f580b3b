"""Fast frames that enter the tower smaller: from pixels to losses."""

from collections.abc import Callable

import pytest
import torch

from fastslow import (
    TextSpan,
    VideoSpan,
    build_schedule,
    next_frame_loss,
    scale_fast_frames,
    tokens_per_frame,
)
from fastslow.qwen2_vl import (
    FastSlowQwen2VL,
    RowPlan,
    VisionGeometry,
    patchify_clip,
)

GEOMETRY = VisionGeometry(min_pixels=1, max_pixels=112 * 112, grid_multiple=2)
SCHEDULE = scale_fast_frames(build_schedule(4, slow_stride=1, fast_stride=2), 2)


def random_frames(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        256, (count, 3, height, width), dtype=torch.uint8, generator=generator
    )


def test_scales_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError) as error:
        patchify_clip(random_frames(4, 112, 112), GEOMETRY, (1, 3))
    assert str(error.value) == (
        "scales is (1, 3); each of 2 temporal patches needs a divisor of 2, the "
        "geometry's grid_multiple"
    )


def test_the_tower_sees_each_frame_on_its_own_grid(
    make_model: Callable[..., FastSlowQwen2VL],
    lay: Callable[..., RowPlan],
    make_patches: Callable[[RowPlan], torch.Tensor],
) -> None:
    model = make_model()
    clip = VideoSpan(grid=(4, 6), schedule=SCHEDULE)
    sample = [TextSpan(token_ids=(1, 2)), clip, TextSpan(token_ids=(3,), trained=True)]
    plan = lay([sample])
    patches = make_patches(plan)
    assert plan.grid_thw.tolist() == [[1, 8, 12], [1, 4, 6]] * 2
    assert len(plan.video_rows) == sum(tokens_per_frame(clip.grid, SCHEDULE)) == 60
    visual = model.backbone.model.visual
    together = visual(patches, grid_thw=plan.grid_thw).pooler_output
    apart = [
        visual(part, grid_thw=row[None]).pooler_output
        for part, row in zip(
            patches.split(plan.grid_thw.prod(1).tolist()), plan.grid_thw, strict=True
        )
    ]
    torch.testing.assert_close(together, torch.cat(apart))
    output = model(patches, plan)
    loss, pairs = next_frame_loss(output.predictions, output.targets)
    assert pairs == 3
    (output.language_loss + loss).backward()
    gradient = visual.merger.mlp[0].weight.grad
    assert gradient is not None and gradient.abs().sum() > 0
