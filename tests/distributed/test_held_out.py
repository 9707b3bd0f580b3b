"""Held-out questions on two gloo ranks, of which one takes long to decode its own.

The file is its own worker: ``torchrun`` runs it with a folder.
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.nn.functional import one_hot

from fastslow import TextSpan
from fastslow.qwen2_vl import VisionGeometry, blank_clip, plan_row
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.loader import Row
from recipes.edge.evaluation.held_out import ask_questions
from recipes.edge.ranks.distributed import process_group

WORDS = 10
BAD = BadSample(sample_id="2", source="rows.jsonl:3", reason="it is broken")


class SlowQuestions:
    """Two questions of a row each; the second takes longer than tensors may wait."""

    samples = SimpleNamespace(
        groups=[0, 0], lengths=[5, 5], settings=SimpleNamespace(capacity=5)
    )

    def __getitem__(self, request: Any) -> Row:
        (number,), state = request
        time.sleep(3 * number)
        clip, patches = blank_clip(VisionGeometry())
        answer = TextSpan(token_ids=(3, 4 + number), trained=True)
        return Row(
            plan=plan_row([(clip, answer)], video_token_id=WORDS - 1),
            patches=patches,
            sample_ids=(str(number),),
            num_tokens=3,
            num_frames=1,
            num_clips=1,
            bad=(BAD,) * number,
            state=state,
        )


class Model:
    """Answers the first question alone; ranks meet in it, as under FSDP."""

    def eval(self) -> None:
        """Nothing is in training."""

    def __call__(self, _: object, plan: Any, *, read_logits: Any) -> Any:
        dist.all_reduce(torch.ones(1))
        said = torch.tensor([3, 4])[-len(plan.labels.targets) :]
        return SimpleNamespace(logits=read_logits(one_hot(said, WORDS)))


def test_a_rank_may_decode_for_longer_than_tensors_wait(
    preloaded: Any, tmp_path: Path
) -> None:
    preloaded.run_ranks(2, __file__, str(tmp_path), log=tmp_path / "log")
    found = [
        json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)
    ]
    sums = {"right": 1, "asked": 3, "labels": 4, "pairs": 0, "rows": 2}
    assert found == [sums] * 2  # what cannot be decoded is not answered


def ask(folder: Path) -> None:
    questions: Any = SlowQuestions()
    model: Any = Model()
    with process_group() as world:
        _set_pg_timeout(timedelta(seconds=1.5))
        found = ask_questions(
            model,
            questions,
            world,
            lambda bad: None,
            terms=["rows"],
            measure=lambda _: [torch.ones(())],
        )
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    ask(Path(sys.argv[1]))
