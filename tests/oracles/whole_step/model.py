"""The model: transformers' tower and layers, and what lies between them in loops."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from tests.oracles.whole_step.clips import Clip, Seen, cells_of
from tests.oracles.whole_step.losses import next_frame_losses
from tests.oracles.whole_step.options import Options
from tests.oracles.whole_step.samples import Sample, positions, visible
from tests.oracles.whole_step.schedules import Frame, Grid


class Reference(nn.Module):
    """A model whose parameters are named as those of the library's.

    The head predicts what the tower sees, or its copy where the tower trains.
    """

    def __init__(self, config: Any, *, has_target_tower: bool) -> None:
        super().__init__()
        self.backbone = _build(config)
        self.target_tower = _build(config).model.visual if has_target_tower else None
        hidden = config.text_config.hidden_size
        self.next_frame_head = nn.Sequential(
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, self.backbone.model.visual.patch_embed.embed_dim),
        ).double()

    def forward(
        self, samples: Sequence[Sample], options: Options
    ) -> tuple[Tensor, dict[str, float]]:
        """Give the loss of a step, and the sums and counts that it is made of.

        Every sample is read alone.
        """
        language, labels = torch.zeros((), dtype=torch.float64), 0
        following = torch.zeros(3, dtype=torch.float64)
        for sample in samples:
            seen = [self._see(clip) for clip in sample.clips]
            hidden = self._read(sample, [each[:2] for each in seen], options)
            for row, token in zip(hidden, sample.tokens[1:], strict=False):
                if token.is_trained:
                    scores = self.backbone.lm_head(row).log_softmax(-1)
                    language, labels = language - scores[token.word], labels + 1
            if options.loss_weight:
                targets = [target for _, _, target in seen]
                predictions = self.next_frame_head(hidden)
                following = following + next_frame_losses(
                    sample, predictions, targets, options
                )
        ahead, copying, pairs = following
        loss = language / max(labels, 1)
        loss = loss + options.loss_weight * ahead / pairs.clamp_min(1)
        sums = {
            "loss": loss,
            "language_loss": language,
            "autoregressive_loss": ahead,
            "copy_loss": copying,
            "pairs": pairs,
        }
        numbers = {name: float(value.detach()) for name, value in sums.items()}
        tokens = sum(len(sample.tokens) for sample in samples)
        return loss, numbers | {"labels": labels, "tokens": tokens}

    def _see(self, clip: Clip) -> tuple[Seen, list[Seen], Seen]:
        """Give for every frame merged tokens, those for deeper layers, and targets."""
        visual = self.backbone.model.visual
        frames = [_look(visual, clip, time) for time in range(len(clip.patches))]
        merged = [frame[0] for frame in frames]
        deeper = [list(level) for level in zip(*(f[1] for f in frames), strict=True)]
        if self.target_tower is not None:
            with torch.no_grad():
                times = range(len(clip.patches))
                frames = [_look(self.target_tower, clip, time) for time in times]
        return merged, deeper, [frame[2].detach() for frame in frames]

    def _read(
        self, sample: Sample, seen: Sequence[tuple[Seen, list[Seen]]], options: Options
    ) -> Tensor:
        """Let the language model read a sample; give its last hidden states."""
        model = self.backbone.model.language_model
        words = torch.tensor([token.word for token in sample.tokens])
        rows = list(model.get_input_embeddings()(words))
        deeper = list[list[Tensor]]()
        pooled = [
            [
                [pool(frame, each, clip, options) for each in (merged, *levels)]
                for frame in clip.frames
            ]
            for clip, (merged, levels) in zip(sample.clips, seen, strict=True)
        ]
        for place, token in enumerate(sample.tokens):
            if token.clip is not None:
                found = [each[token.window] for each in pooled[token.clip][token.frame]]
                rows[place] = found[0]
                deeper.append(found[1:])
        extra = {}
        if deeper and deeper[0]:
            is_video = torch.tensor([[t.clip is not None for t in sample.tokens]])
            levels = [torch.stack(level) for level in zip(*deeper, strict=True)]
            extra = {"visual_pos_masks": is_video, "deepstack_visual_embeds": levels}
        inputs = torch.stack(rows)[None]
        unseen = ~visible(sample, options)
        mask = inputs.new_zeros(unseen.shape).masked_fill(unseen, -1e30)
        output = model(
            inputs_embeds=inputs,
            attention_mask=mask[None, None],
            position_ids=positions(sample, options.after_video_rule)[:, None],
            use_cache=False,
            **extra,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


def _build(config: Any) -> Any:
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    return model.double()


def _look(visual: Any, clip: Clip, time: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """Let a tower see one frame; the target is the mean of a merged token's patches."""
    grid = clip.encoded_grid(time)
    patches = clip.patches[time].to(visual.patch_embed.proj.weight.dtype)
    size = torch.tensor([[1, 2 * grid[0], 2 * grid[1]]])
    output = visual(patches, grid_thw=size)
    means = list(output.last_hidden_state.unflatten(0, (-1, 4)).mean(1))
    if visual.config.model_type == "qwen2_5_vl_vision":
        side = visual.config.window_size // 2 // visual.config.patch_size
        order = _window_order(grid, side)
        means = [means[order.index(cell)] for cell in product(*map(range, grid))]
    deeper = getattr(output, "deepstack_features", None) or []
    return (
        output.pooler_output.unflatten(0, grid),
        [level.unflatten(0, grid) for level in deeper],
        torch.stack(means).unflatten(0, grid),
    )


def _window_order(grid: Grid, side: int) -> list[tuple[int, int]]:
    """List cells as Qwen2.5-VL's tower does, window by window."""
    cells = list(product(*map(range, grid)))
    return sorted(cells, key=lambda cell: (cell[0] // side, cell[1] // side))


def pool(frame: Frame, seen: Seen, clip: Clip, options: Options) -> Tensor:
    """Pool a frame; a row for each window, dropped ones too."""
    mode, times = options.mm_spatial_pool_mode, range(frame.start, frame.stop)
    if mode in {"average", "max"}:
        rows = []
        for window in frame.windows:
            held = [cells_of(seen[t], window, clip.scales[t]) for t in times]
            if mode == "average":
                rows.append(torch.stack([cells.mean(0) for cells in held]).mean(0))
            else:
                rows.append(torch.cat(held).max(0).values)
        return torch.stack(rows)
    size = len(frame.rows), len(frame.columns)
    each = []
    for time in times:
        picture = seen[time].permute(2, 0, 1)[None]
        if mode == "area":
            small = F.adaptive_avg_pool2d(picture, size)
        else:
            small = F.interpolate(picture, size=size, mode="bilinear")
        each.append(small[0].flatten(1).T)
    return torch.stack(each).mean(0)
