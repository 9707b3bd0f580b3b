"""The step that the recipe takes, in float64, and with all that the library has."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForImageTextToText

import fastslow
from fastslow import (
    FrameSchedule,
    FrameWindow,
    Span,
    change_weights,
    next_frame_loss,
    plan_next_frame,
)
from fastslow.qwen2_vl import FastSlowOutput, FastSlowQwen2VL, blank_clip, plan_row
from recipes import train
from recipes.config import Config
from recipes.data import plan_data
from recipes.edge.data.loader import Row
from recipes.edge.data.quarantine import Quarantine
from recipes.edge.ranks.distributed import World
from recipes.edge.training.optimization import SkippedSteps
from recipes.edge.training.parallel import (
    blocks_of,
    checkpoint_activations,
    choose_trained,
)
from recipes.measures import count_step
from recipes.progress import Progress, Run
from recipes.settings.parallel import Parallel
from tests.oracles.whole_step.options import Options
from tests.oracles.whole_step.settings import Setting

SUMS = {"language_loss": "labels", "autoregressive_loss": "pairs", "copy_loss": "pairs"}
"""Losses, and what each is divided by."""


def every_other_frame(num_frames: int, slow_stride: int) -> FrameSchedule:
    whole = fastslow.repeat_strides(num_frames, (slow_stride,))
    return fastslow.select_frames(whole, range(0, num_frames, 2))


def two_streams(num_frames: int, slow_stride: int, order: str) -> FrameSchedule:
    slow = every_other_frame(num_frames, slow_stride)
    fast = fastslow.schedule_from_strides(
        [2 * slow_stride] * num_frames, is_slow=[False] * num_frames
    )
    return fastslow.merge_streams([slow, fast], order=order)


def two_of_three_tokens(
    num_frames: int,
    grid: tuple[int, int],
    slow_ratio: float,
    slow_stride: int,
    fast_stride: int,
) -> FrameSchedule:
    whole = fastslow.build_schedule(
        num_frames,
        slow_ratio=slow_ratio,
        slow_stride=slow_stride,
        fast_stride=fast_stride,
    )
    counts = fastslow.tokens_per_frame(grid, whole)
    keep = [
        [(n + time) % 3 != 1 or count == 1 for n in range(count)]
        for time, count in enumerate(counts)
    ]
    return fastslow.keep_tokens(whole, keep)


def grids_in_turn(num_frames: int, grid: tuple[int, int]) -> FrameSchedule:
    height, width = grid
    grids = [(min(2, height), min(3, width)), (1, min(2, width))] * num_frames
    return fastslow.schedule_from_grids(grids[:num_frames])


OWN_STRATEGIES = (every_other_frame, two_streams, two_of_three_tokens, grids_in_turn)
"""Schedules that settings may name once they stand among ``CONSTRUCTORS``."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A step that was taken.

    Attributes:
        numbers: Its losses, summed up, and what they are divided by.
        gradients: By name, of the weights that have one.
        weights: All weights before the step, those of the copied tower too.
        trained: Names of those that train.
        samples: The rows of the data file that were packed into it.
    """

    numbers: dict[str, float]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    trained: list[str]
    samples: Sequence[Mapping[str, Any]]


class _Gradients:
    """In the place of an optimizer: keeps the gradients of a step."""

    def __init__(self, model: FastSlowQwen2VL) -> None:
        self.param_groups = list[Any]()
        self.kept: dict[str, Tensor] = {}
        self._model = model

    def step(self) -> None:
        for name, weight in self._model.named_parameters():
            if weight.grad is not None:
                gradient: Any = weight.grad
                self.kept[name] = gradient.full_tensor().clone()

    def zero_grad(self) -> None:
        self._model.zero_grad()


def take_step(
    setting: Setting, checkpoint: Path, data: Path, output: Path, world: World
) -> Taken:
    """Let the recipe take the first step of a run."""
    model = _build_model(setting, checkpoint)
    weights = {name: w.detach().clone() for name, w in model.state_dict().items()}
    trained = [name for name, w in model.named_parameters() if w.requires_grad]
    for module in (*blocks_of(model), model):  # in float64, in which no run computes
        fully_shard(module, mesh=world.mesh)
    config = _config(setting, checkpoint, data, output)
    optimizer: Any = _Gradients(model)
    run = Run(
        config=config,
        data=plan_data(config, world),
        model=model,
        optimizer=optimizer,
        quarantine=Quarantine(output, num_samples=99, max_share=1.0, world=world),
        world=world,
    )
    progress = Progress(rows_per_step=config.rows_per_step)
    rows = list(islice(train.row_stream(run, progress), config.rows_per_step))
    numbers = _losses(run, setting, rows)
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    by_id = {line["id"]: line for line in lines}
    return Taken(
        numbers=numbers,
        gradients=optimizer.kept,
        weights=weights,
        trained=trained,
        samples=[by_id[name] for row in rows for name in row.sample_ids],
    )


def _config(setting: Setting, checkpoint: Path, data: Path, output: Path) -> Config:
    others = setting.others
    name, arguments = setting.options.strategy
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    known = {field.name for field in fields(Config)}
    return Config(
        output_dir=output,
        model_name_or_path=str(checkpoint),
        data_path=str(data),
        frame_sampling_strategy=f"{name}({given})" if given else name,
        tokens_per_row=others["tokens_per_row"],
        packing_window=others["packing_window"],
        gradient_accumulation_steps=others["gradient_accumulation_steps"],
        per_device_train_batch_size=1,
        max_grad_norm=0.0,
        max_bad_share=1.0,
        dataloader_num_workers=0,
        seed=setting.seed,
        **{key: value for key, value in vars(setting.options).items() if key in known},
    )


def _build_model(setting: Setting, checkpoint: Path) -> FastSlowQwen2VL:
    """Build the model of a run; its head, its adapters and a trained tower are moved.

    So adapters add something, and a trained tower is told from its frozen copy.
    """
    backbone = AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype=torch.float32
    )
    model, others = FastSlowQwen2VL(backbone), setting.others
    if not setting.options.loss_weight:
        model.drop_next_frame()
    settings = Parallel(
        compute="float32",
        tower=others["tower"],
        lora_rank=others["lora_rank"],
        lora_alpha=others["lora_alpha"],
    )
    choose_trained(model, settings)
    checkpoint_activations(model, others["activation_checkpointing"])
    model.double()
    chance = torch.Generator().manual_seed(setting.seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=chance)
            if name.startswith("next_frame_head"):
                weight.copy_(0.3 * noise)
            elif "lora_" in name:
                weight.copy_(0.06 * noise)
            elif "visual" in name and others["tower"] == "trained":
                weight.add_(0.05 * noise)
    return model


def _losses(run: Run, setting: Setting, rows: list[Row]) -> dict[str, float]:
    """Take the step; its optimizer keeps the gradients."""
    options = setting.options
    with pytest.MonkeyPatch.context() as patch:
        if setting.is_planned_anew:
            rows = [_plan_anew(row, run, setting) for row in rows]
        counts = count_step(run, rows, 0.0)
        if setting.is_planned_anew and options.loss_weight:
            counts["pairs"] = sum(_count(run.model, row, options) for row in rows)
            waiting = iter(rows)
            patch.setattr(
                train,
                "measure_terms",
                lambda output, _: _terms(output, next(waiting), options),
            )
        found, _, _ = train.train_step(run, 1, rows, counts, SkippedSteps())
    numbers = {"loss": found["loss"], "tokens": sum(row.num_tokens for row in rows)}
    for name, count in SUMS.items():
        if name in found:
            numbers[count] = counts[count]
        if name in found and counts[count]:
            numbers[name] = found[name] * counts[count]
    return numbers


def _plan_anew(row: Row, run: Run, setting: Setting) -> Row:
    """Plan a row with arguments that no recipe sets."""
    options, samples = setting.options, run.data.train
    ids = [sample.sample_id for sample in samples.samples()]
    spans: list[Sequence[Span]] = [
        samples[ids.index(name)].spans for name in row.sample_ids
    ]
    family = samples.settings.family
    if not row.num_clips:
        spans.append([blank_clip(family.geometry)[0]])
    length = len(row.plan.layout.input_ids) + setting.others["padding"]
    plan = plan_row(
        spans,
        video_token_id=run.model.backbone.config.video_token_id,
        family=family,
        attention=options.attention,
        window=FrameWindow(**asdict(options.window)) if options.window else None,
        pool_mode=options.mm_spatial_pool_mode,
        after_video_rule=options.after_video_rule,
        length=length,
    )
    following = plan_next_frame(plan.layout, pairing=options.pairing)
    return replace(row, plan=replace(plan, next_frame=following))


def _measure(output: FastSlowOutput, row: Row, options: Options) -> Any:
    weights = None
    if options.change_weights:
        weights = change_weights(output.copies, output.targets.values)
    return partial(
        next_frame_loss,
        targets=output.targets,
        distance=options.next_frame_distance,
        reduction=options.reduction,
        normalize_targets=options.normalize_targets,
        weights=weights,
        cu_videos=row.plan.next_frame.cu_videos,
    )


def _count(model: FastSlowQwen2VL, row: Row, options: Options) -> float:
    """Tell what the losses of a row are divided by."""
    with torch.no_grad():
        output = model(row.patches, row.plan)
    return float(_measure(output, row, options)(output.predictions)[1])


def _terms(output: FastSlowOutput, row: Row, options: Options) -> list[Tensor]:
    """Measure what the recipe does, and give zeros for what no loss is."""
    measure = _measure(output, row, options)
    losses = [measure(each)[0] for each in (output.predictions, output.copies)]
    return [output.language_loss, *losses, *torch.zeros(2)]
