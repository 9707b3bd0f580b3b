"""The next-frame loss, the loss of copying, and what a leak looks like.

python docs/tutorial/next_frame.py
"""

from pathlib import Path

import torch
from drawing import Panel, curves_svg
from torch import Tensor, nn

from fastslow import (
    KeyIntervals,
    VideoSpan,
    build_layout,
    build_schedule,
    copy_skill,
    interval_attention,
    next_frame_loss,
    plan_next_frame,
    plan_pooling,
    pool_tokens,
    visible_intervals,
)

CLIPS, FRAMES, SIDE, DIM, WIDTH, STEPS = 8, 4, 4, 8, 32, 160

# Eight clips in one row, all of integers: layout, pooling, pairs of frames.
schedule = build_schedule(FRAMES, slow_stride=1, fast_stride=2)
clip = VideoSpan(grid=(SIDE, SIDE), schedule=schedule)
row = build_layout([[clip]] * CLIPS, video_token_id=0)
pooling = plan_pooling([(clip.grid, schedule)] * CLIPS)
plan = plan_next_frame(row)


def film() -> Tensor:
    """Give features of new clips: a camera pans over noise, one cell a frame.

    Three quarters of a frame were in the frame before. The column that comes into view
    is noise that nobody has seen.
    """
    world = torch.randn(CLIPS, SIDE, SIDE + FRAMES, DIM, dtype=torch.float64)
    views = [world[:, :, t : t + SIDE] for t in range(FRAMES)]
    return torch.stack(views, dim=1).view(-1, DIM)


class Predictor(nn.Module):
    """One layer of attention, and a head that says what comes next."""

    def __init__(self) -> None:
        """Draw the weights."""
        super().__init__()
        self.embed = nn.Linear(DIM, WIDTH)
        self.places = nn.Parameter(torch.randn(FRAMES, SIDE, SIDE, WIDTH) / 2)
        self.norm = nn.LayerNorm(WIDTH)
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Sequential(
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.GELU(),
            nn.Linear(2 * WIDTH, DIM),
        )

    def forward(self, tokens: Tensor, visible: KeyIntervals) -> Tensor:
        """Predict at every token, from what it may read."""
        time, height, width = row.position_ids[1:]
        hidden = self.embed(tokens) + self.places[time, height, width]
        heads = self.project(self.norm(hidden)).view(-1, 3, 2, WIDTH // 2)
        query, key, value = heads.permute(1, 2, 0, 3)[:, None]
        read = interval_attention(query, key, value, visible)[0]
        hidden = hidden + self.mix(read.transpose(0, 1).reshape(-1, WIDTH))
        predicted: Tensor = self.head(hidden)
        return predicted


def train(ranks: Tensor) -> tuple[list[float], list[float]]:
    """Train under the mask of some ranks; give the losses, and those of copying."""
    torch.manual_seed(1)
    visible = visible_intervals(ranks, row.segment_ids)
    model = Predictor().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses, copies = [], []
    for _ in range(STEPS):
        features = film()
        hidden = model(pool_tokens(features, pooling).values, visible)
        predicted = pool_tokens(hidden[plan.rows], plan.predictions).values
        targets = pool_tokens(features, plan.targets)
        loss, count = next_frame_loss(predicted, targets)
        copied, _ = next_frame_loss(pool_tokens(features, plan.copies).values, targets)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append((loss / count).item())
        copies.append((copied / count).item())
    return losses, copies


def last(values: list[float]) -> float:
    """Average the last twenty steps."""
    return sum(values[-20:]) / 20


ordered, copies = train(row.causal_ranks)
leaking, _ = train(torch.zeros_like(row.causal_ranks))  # all of a clip at one rank
for name, losses in {"copy": copies, "ordered": ordered, "leaking": leaking}.items():
    print(f"{name:8} loss {last(losses):.2f}", end="  ")
    print(f"skill {copy_skill(last(losses), last(copies)):.2f}")

named = {"frame-causal mask": ordered, "leaking mask": leaking, "copying": copies}
panel = Panel(title="Next-frame loss", steps=STEPS, low=0, high=1, curves=named)
words = "Under the leaking mask the loss falls below what can be known beforehand."
Path(__file__).with_suffix(".svg").write_text(curves_svg([panel], words))
