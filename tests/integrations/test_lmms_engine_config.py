"""The YAML of a run: translated, and no word of it lost."""

import re
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_engine", reason="lmms-engine is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lmms_engine.datasets import DatasetConfig

    from fastslow.integrations.lmms_engine import read_config

Change = Callable[[dict[str, Any]], object]
Settings = dict[str, Any]


@pytest.fixture
def settings(run_settings: Callable[..., Settings]) -> Settings:
    return run_settings(Path("data"))


def test_settings_of_the_method_reach_their_places(settings: Settings) -> None:
    config = read_config(settings)
    dataset, model = config["dataset_config"], config["model_config"]
    assert dataset["processor_config"]["extra_kwargs"] == {
        "mm_spatial_pool_stride": 2,
        "frame_sampling_strategy": "interleave",
        "slow_frame_ratio": 0.5,
        "min_pixels": DatasetConfig.model_fields["video_min_pixels"].default,
        "max_pixels": 12544,
    }
    assert model["monkey_patch_kwargs"] == {
        "patch_type": ["fastslow"],
        "loss_weight": 0.15,
    }
    assert dataset["video_sampling_strategy"] == "frame_num"
    assert dataset["frame_num"] == 8
    assert dataset["dataset_format"] == "yaml"
    assert dataset["datasets"] == [
        {
            "path": "data/clips/train.json",
            "data_folder": "data/clips",
            "data_type": "json",
        }
    ]
    assert config["trainer_args"]["reduce_dtype"] == "float32"
    assert set(config) == {
        "trainer_type",
        "dataset_config",
        "model_config",
        "trainer_args",
    }


def test_keys_at_top_level_mean_the_same(settings: Settings) -> None:
    expected = read_config(settings)
    flat = deepcopy(settings)
    flat.update(flat.pop("autoregressive_config"))
    assert read_config(flat) == expected
    for name in ("learning_rate", "per_device_train_batch_size"):
        flat[name] = flat["trainer_args"].pop(name)
    assert read_config(flat) == expected
    assert read_config(flat | {"output_hidden_states": True}) == expected
    assert read_config(expected) == expected


def test_the_settings_given_stay_as_they_are(settings: Settings) -> None:
    before = deepcopy(settings)
    read_config(settings)
    assert settings == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(loss_wieght=0.1), "loss_wieght is no setting; the nearest"),
        (
            lambda s: s["autoregressive_config"].update(slow_ratio=0.1),
            "autoregressive_config.slow_ratio is no setting; the nearest one is auto",
        ),
        (
            lambda s: s["dataset_config"].update(pakcing=True),
            "dataset_config.pakcing is no setting; the nearest one is dataset_config.p",
        ),
        (
            lambda s: s["dataset_config"].update(extra_kwargs={"packing_kwarg": {}}),
            "dataset_config.extra_kwargs.packing_kwarg is no setting",
        ),
        (
            lambda s: s["dataset_config"]["processor_config"].update(name="x"),
            "dataset_config.processor_config.name is no setting",
        ),
        (
            lambda s: s["model_config"].update(torch_dtype="bfloat16"),
            "model_config.torch_dtype is no setting",
        ),
        (
            lambda s: s["model_config"]["monkey_patch_kwargs"].update(loss=1),
            "model_config.monkey_patch_kwargs.loss is no setting",
        ),
        (
            lambda s: s["trainer_args"].update(max_step=5),
            "trainer_args.max_step is no setting; the nearest one is trainer_args.max_",
        ),
        (
            lambda s: s["trainer_args"].update(fsdp_config={"reshard_after": True}),
            "trainer_args.fsdp_config.reshard_after is no setting; the nearest one is",
        ),
        (
            lambda s: [
                s.pop("data_path"),
                s["dataset_config"].update(datasets=[{"paht": "a.json"}]),
            ],
            "dataset_config.datasets.paht is no setting; the nearest one is",
        ),
        (
            lambda s: s["dataset_config"].update(frame_num=9),
            "frame_num is 9 but max_frames_num asks for 8; they must agree",
        ),
        (
            lambda s: s["model_config"]["monkey_patch_kwargs"].update(loss_weight=1),
            "loss_weight is 1 but loss_weight asks for 0.15; they must agree",
        ),
        (
            lambda s: s.update(slow_frame_ratio=0.3),
            "slow_frame_ratio is 0.3 but autoregressive_config.slow_frame_ratio asks",
        ),
        (
            lambda s: s.update(data_path="lmms-lab/LLaVA-Video-178K.csv"),
            "data_path is 'lmms-lab/LLaVA-Video-178K.csv'; it must be a .json,",
        ),
        (
            lambda s: s.update(data_path=["a.json", "b.json"]),
            "data_path is ['a.json', 'b.json']; it must be a .json,",
        ),
        (
            lambda s: (s.pop("data_path"), s["dataset_config"].update(datasets=5)),
            "dataset_config.datasets is 5; it must be a list",
        ),
        (lambda s: s.pop("trainer_type"), "trainer_type is missing; lmms-engine needs"),
        (lambda s: s.clear(), "there are no settings; lmms-engine needs some"),
        (lambda s: s.update({1: 2}), "1 is no setting; the nearest one is"),
        (
            lambda s: s.update(autoregressive_config=[1]),
            "autoregressive_config is [1]; it must be a mapping of settings",
        ),
        (
            lambda s: s.update(dataset_config=[1]),
            "dataset_config is [1]; it must be a mapping of settings",
        ),
        (
            lambda s: s["dataset_config"].update(processor_config="qwen2_vl"),
            "dataset_config.processor_config is 'qwen2_vl'; it must be a mapping of",
        ),
        (
            lambda s: s["trainer_args"].update(fsdp_config="full_shard"),
            "trainer_args.fsdp_config is 'full_shard'; it must be a mapping of",
        ),
        (
            lambda s: [
                s.pop("data_path"),
                s["dataset_config"].update(datasets=["a.json"]),
            ],
            "an entry of dataset_config.datasets is 'a.json'; it must be a mapping of",
        ),
        (
            lambda s: s.update(trainer_type="fsdp2_trainer"),
            "trainer_type is 'fsdp2_trainer'; it must be 'fastslow_fsdp2_trainer'",
        ),
        (
            lambda s: s["dataset_config"]["processor_config"].update(
                processor_type="qwen2_vl"
            ),
            "dataset_config.processor_config.processor_type is 'qwen2_vl'; it must be",
        ),
        (
            lambda s: s["model_config"]["monkey_patch_kwargs"].update(patch_type=[]),
            "model_config.monkey_patch_kwargs.patch_type is []; it must be ['fastsl",
        ),
        (
            lambda s: s["dataset_config"].update(dataset_type="qwen3_vl_iterable"),
            "dataset_config.dataset_type is 'qwen3_vl_iterable'; it must be one of",
        ),
        (
            lambda s: s["dataset_config"].update(packing=True),
            "dataset_config.packing is True but dataset_type vision packs by guessed",
        ),
        (
            lambda s: s["model_config"].update(attn_implementation="flash_attention_2"),
            "model_config.attn_implementation is 'flash_attention_2'; the patch brings",
        ),
        (
            lambda s: s["dataset_config"]["processor_config"].update(
                extra_kwargs={"max_pixels": 9}
            ),
            "max_pixels is 9 but dataset_config.video_max_pixels asks for 12544; they",
        ),
        (
            lambda s: s["trainer_args"].update(fp16=True),
            "trainer_args.fp16 is True; losses are not scaled",
        ),
        (
            lambda s: s["trainer_args"].update(use_liger_kernel=True),
            "trainer_args.use_liger_kernel is True; lmms-engine would not",
        ),
        (
            lambda s: s["trainer_args"].update(sp_ulysses_degree=2),
            "trainer_args.sp_ulysses_degree is 2; a packed row stays on one rank",
        ),
        (
            lambda s: s["trainer_args"].pop("lr_scheduler_type"),
            "trainer_args.lr_scheduler_type is 'linear'; lmms-engine's FSDP2 trainer",
        ),
        (
            lambda s: s["trainer_args"].update(lr_scheduler_type="constant"),
            "trainer_args.lr_scheduler_type is 'constant' without warm-up",
        ),
        (
            lambda s: s["dataset_config"].update(max_length=4000),
            "dataset_config.max_length is 4000; dataset_type vision drops by guessed",
        ),
        (
            lambda s: s["dataset_config"].update(eval_dataset_path="a.json"),
            "dataset_config.eval_dataset_path is 'a.json'; lmms-engine's FSDP2 trainer",
        ),
        (
            lambda s: s["trainer_args"].update(group_by_length=True),
            "trainer_args.group_by_length is True; dataset_type vision groups by",
        ),
        (
            lambda s: s["trainer_args"].update(ema_enabled=True),
            "trainer_args.ema_enabled is True; what it writes cannot be joined into",
        ),
        (
            lambda s: s["trainer_args"].update(warmup_steps=0.5),
            "trainer_args.warmup_steps is 0.5; it must be a whole number, and",
        ),
        (
            lambda s: s["trainer_args"].update(warmup_steps=-1),
            "trainer_args.warmup_steps is -1; it must be a whole number, and",
        ),
        (
            lambda s: s["trainer_args"].update(warmup_ratio=-1),
            "trainer_args.warmup_ratio is -1; it must be at least 0 and below 1",
        ),
        (
            lambda s: s["trainer_args"].update(warmup_ratio=1.0),
            "trainer_args.warmup_ratio is 1.0; it must be at least 0 and below 1",
        ),
        (
            lambda s: s["trainer_args"].update(warmup_ratio=0.1, warmup_steps=5),
            "trainer_args.warmup_steps is 5 beside warmup_ratio, which hides it",
        ),
        (
            lambda s: s["trainer_args"].update(seed=7),
            "trainer_args.seed is 7; lmms-engine's FSDP2 trainer never reads it",
        ),
        (
            lambda s: s["trainer_args"].update(use_muon=True),
            "trainer_args.use_muon is True; lmms-engine's FSDP2 trainer never reads it",
        ),
        (
            lambda s: s["trainer_args"].update(optim="adafactor"),
            "trainer_args.optim is 'adafactor'; lmms-engine's FSDP2 trainer never",
        ),
        (
            lambda s: s["trainer_args"].update(save_strategy="no"),
            "trainer_args.save_strategy is 'no'; lmms-engine's FSDP2 trainer never",
        ),
        (
            lambda s: s["trainer_args"].update(resume_from_checkpoint="a"),
            "trainer_args.resume_from_checkpoint is 'a'; lmms-engine's FSDP2 trainer",
        ),
        (
            lambda s: s["trainer_args"].update(ema_param_filter={"mod": "regex"}),
            "trainer_args.ema_param_filter is {'mod': 'regex'}; lmms-engine's FSDP2",
        ),
        (
            lambda s: s["trainer_args"].update(
                gradient_checkpointing_kwargs={"use_reentrant": True}
            ),
            "trainer_args.gradient_checkpointing_kwargs is {'use_reentrant': True};",
        ),
        (
            lambda s: s["trainer_args"].update(report_to="tensorboard"),
            "trainer_args.report_to has 'tensorboard'; lmms-engine's FSDP2 trainer has",
        ),
        (
            lambda s: s["trainer_args"].update(report_to=["wandb", "all"]),
            "trainer_args.report_to has 'all'; lmms-engine's FSDP2 trainer has wandb,",
        ),
        (
            lambda s: s["trainer_args"].update(eval_strategy="steps"),
            "trainer_args.eval_strategy is 'steps' without eval_config; lmms-engine's",
        ),
        (
            lambda s: s["trainer_args"].update(freeze_modules="model.visual"),
            "trainer_args.freeze_modules is 'model.visual'; it must be a list",
        ),
        (
            lambda s: s["trainer_args"].pop("output_dir"),
            "trainer_args.output_dir is missing; lmms-engine needs it",
        ),
        (
            lambda s: s["dataset_config"].update(dataset_path="b.json"),
            "dataset_config.dataset_path is 'b.json' beside datasets, which hides it",
        ),
        (
            lambda s: [
                s.pop("data_path"),
                s["dataset_config"].update(
                    datasets=[{"path": "a.json"}], dataset_format="json"
                ),
            ],
            "dataset_config.dataset_format is 'json' beside datasets; it must be",
        ),
        (
            lambda s: [
                s.pop("data_path"),
                s["dataset_config"].update(
                    dataset_path="b.json",
                    datasets=[{"path": "a.json"}],
                    dataset_format="json",
                ),
            ],
            "dataset_config.dataset_format is 'json' beside datasets; it must be",
        ),
        *(
            (
                lambda s, packing=packing: s["dataset_config"].update(
                    packing=packing, packing_length=9
                ),
                f"dataset_config.packing is {packing!r}; it must be true or false",
            )
            for packing in ("true", "false", 1)
        ),
        (
            lambda s: s["dataset_config"].update(data_seed=7),
            "dataset_config.data_seed is 7 but dataset_type is 'vision'; it is read",
        ),
        (
            lambda s: s["dataset_config"].update(fps=2),
            (
                "dataset_config.fps is 2 but video_sampling_strategy is 'frame_num'; "
                "it is read under 'fps' or video_backend 'qwen_omni_utils' alone"
            ),
        ),
        (
            lambda s: [
                s["autoregressive_config"].pop("max_frames_num"),
                s["dataset_config"].update(frame_num=8),
            ],
            "dataset_config.frame_num is 8 but video_sampling_strategy is 'fps'; it is",
        ),
        (
            lambda s: s["dataset_config"].update(packing_length=9),
            "dataset_config.packing_length is 9 but packing is False; it is read under",
        ),
        (
            lambda s: s["dataset_config"].update(video_max_frames=9),
            "dataset_config.video_max_frames is 9 but video_backend is 'decord'; it is",
        ),
        (
            lambda s: s["model_config"].update(load_from_config={"model_type": "a"}),
            "model_config.load_from_config is {'model_type': 'a'} beside load_from_pre",
        ),
        *(
            (
                lambda s, weight=weight: s["autoregressive_config"].update(
                    loss_weight=weight
                ),
                f"loss_weight is {weight!r}; it must be a number, 0 or more",
            )
            for weight in (float("nan"), float("inf"), -1, "much")
        ),
    ],
)
def test_nothing_is_dropped_in_silence(
    settings: Settings, change: Change, message: str
) -> None:
    change(settings)
    with pytest.raises(ValueError) as caught:
        read_config(settings)
    assert str(caught.value).startswith(message)


def test_what_is_read_is_what_its_fsdp2_trainer_names() -> None:
    """Every argument in the list stands in the sources that the list is made from."""
    import inspect

    from lmms_engine.launch import cli
    from lmms_engine.train import runner
    from lmms_engine.train.fsdp2 import fsdp2_trainer

    from fastslow.integrations.lmms_engine import effects, trainer

    sources = [inspect.getsource(each) for each in (cli, runner, fsdp2_trainer)]
    text = "".join([*sources, inspect.getsource(trainer)])
    text += (
        "train_batch_size per_device_train_batch_size tf32"  # by a property; at once
    )
    missing = [name for name in effects.READ if not re.search(rf"\b{name}\b", text)]
    assert missing == []


def test_what_happens_anyhow_may_be_said(settings: Settings) -> None:
    settings["trainer_args"] |= {
        "fsdp2": True,
        "logging_steps": 1,
        "optim": "adamw_torch",
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "seed": 42,
        "save_strategy": "steps",
        "eval_strategy": "no",
        "deepspeed": None,
        "ema_enabled": False,
        "group_by_length": False,
        "include_for_metrics": [],
        "warmup_steps": 0,
        "report_to": "none",
        "include_num_input_tokens_seen": False,
    }
    settings["dataset_config"] |= {"max_length": None, "fps": 1, "packing": False}
    read_config(settings)


@pytest.mark.parametrize("logs", ["all", ["all"]])
def test_all_places_to_log_are_those_of_its_trainer(
    settings: Settings, logs: Any
) -> None:
    settings["trainer_args"]["report_to"] = logs
    read_config(settings)


def test_one_backend_reads_the_rate_beside_the_number_of_frames(
    settings: Settings,
) -> None:
    settings["dataset_config"] |= {"video_backend": "qwen_omni_utils", "fps": 2}
    assert read_config(settings)["dataset_config"]["fps"] == 2


def test_an_empty_mapping_is_one_without_a_name(settings: Settings) -> None:
    expected = read_config(settings)
    settings["dataset_config"]["extra_kwargs"] = None
    settings["dataset_config"]["processor_config"]["extra_kwargs"] = None
    settings["model_config"]["extra_kwargs"] = None
    assert read_config(settings) == expected


def test_a_tilde_is_home(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of")
    settings["data_path"] = "~/clips/train.json"
    settings["trainer_args"]["output_dir"] = "~/out"
    settings["model_config"]["load_from_pretrained_path"] = "~/model"
    config = read_config(settings)
    (source,) = config["dataset_config"]["datasets"]
    assert source["path"] == "/home/of/clips/train.json"
    assert source["data_folder"] == "/home/of/clips"
    assert config["trainer_args"]["output_dir"] == "/home/of/out"
    assert config["model_config"]["load_from_pretrained_path"] == "/home/of/model"
    assert read_config(config) == config


def test_lmms_engine_itself_drops_what_it_does_not_know() -> None:
    known = {"dataset_type": "vision", "dataset_format": "json", "processor_config": {}}
    loaded = DatasetConfig(**known, pakcing=True)
    assert loaded.packing is False
    assert not hasattr(loaded, "pakcing")


def test_its_constant_schedule_without_warm_up_stays_at_a_hundredth() -> None:
    import torch
    from lmms_engine.utils.fsdp2_utils import get_constant_schedule

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_constant_schedule(optimizer, num_warmup_steps=0)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == [0.01]


def test_the_example_is_complete() -> None:
    from omegaconf import OmegaConf

    file = Path(__file__).parents[2] / "recipes" / "configs" / "lmms_engine_7b.yaml"
    config = read_config(OmegaConf.to_container(OmegaConf.load(file)))
    assert config["trainer_args"]["learning_rate"] == 2e-5
    assert config["model_config"]["monkey_patch_kwargs"]["loss_weight"] == 0.15
