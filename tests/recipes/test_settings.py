"""Settings: files and flags fill a preset, and what is written reloads to the same."""

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from recipes.command_line import parse_command_line
from recipes.config import ALIASES, METHOD, Config, load_config, with_settings
from recipes.qwen2vl_2b import QWEN2VL_2B
from recipes.qwen2vl_7b import QWEN2VL_7B
from recipes.qwen2vl_72b import QWEN2VL_72B
from recipes.qwen2vl_tiny import TINY
from recipes.settings.mappings import (
    check_same_settings,
    fill_settings,
    read_settings,
    settings_as_json,
    settings_as_yaml,
)
from recipes.settings.parallel import Parallel

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs"
PRESETS = {
    "qwen2vl_tiny": TINY,
    "qwen2vl_2b": QWEN2VL_2B,
    "qwen2vl_7b": QWEN2VL_7B,
    "qwen2vl_72b": QWEN2VL_72B,
}
BARE = Config(output_dir=Path("elsewhere"))

numbers = st.floats(0, 1e9) | st.integers(0, 10**9).map(float)
shares = st.floats(0, 1)
counts = st.integers(1, 10**9)
texts = st.text(max_size=20)
paths = texts.map(Path)
strategies = st.sampled_from(
    [
        "interleave",
        "first_slow",
        "last_slow",
        "uniform",
        "repeat_strides(pattern=(2, 4, 4), phase=1)",
        "kernel_schedule(kernel=(2, 2, 2), edge='floor')",
        "schedule_from_strides(strides=(1, 2))",
    ]
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Draw settings of every kind, whatever they may be called."""
    low, high = sorted([draw(counts), draw(counts)])
    of_type = {bool: st.booleans(), int: counts, float: shares, str: texts}
    of_type |= {Path: paths, str | None: st.none() | texts}
    of_type |= {tuple[str, ...]: st.lists(texts, max_size=2).map(tuple)}
    chosen: dict[str, Any] = {
        "frame_sampling_strategy": strategies,
        "mm_spatial_pool_stride": counts.map(lambda half: 2 * half),
        "min_pixels": st.just(low),
        "max_pixels": st.just(high),
        "learning_rate": numbers,
        "weight_decay": numbers,
        "loss_weight": numbers,
        "archives_on_disk": st.just(0) | st.integers(3, 10**9),
        "assumed_mfu": st.floats(1e-6, 1),
        "parallel": st.builds(
            Parallel,
            compute=st.sampled_from(["bfloat16", "float32"]),
            activation_checkpointing=st.sampled_from(["none", "selective", "full"]),
            torch_compile=st.booleans(),
            replicate=counts,
            lora_alpha=st.integers(1, 2**63 - 1),
            lora_dropout=st.floats(0, 1, exclude_max=True),
        ),
    }
    for name, kind in get_type_hints(Config).items():
        if name not in chosen:
            words = get_args(kind)
            is_words = words and all(isinstance(word, str) for word in words)
            chosen[name] = st.sampled_from(words) if is_words else of_type[kind]
    return Config(**{name: draw(each) for name, each in chosen.items()})


def reloaded(config: Config, folder: Path) -> Config:
    file = folder / "settings.yaml"
    file.write_text(settings_as_yaml(config))
    return load_config(file, BARE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


@given(configs())
@example(replace(TINY, data_path="2e-5"))
@example(replace(TINY, data_path="yes"))
@example(replace(TINY, data_path="null"))
@example(replace(TINY, data_path="1:30"))
@example(replace(TINY, data_path="\x85 \ufeff: #\n"))
@example(replace(TINY, data_path=""))
@example(replace(TINY, data_path="~"))
def test_what_is_written_reloads(folder: Path, config: Config) -> None:
    assert reloaded(config, folder) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_reload(tmp_path: Path, name: str) -> None:
    assert reloaded(PRESETS[name], tmp_path) == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_the_file_of_a_preset_says_all_of_it(name: str) -> None:
    file = CONFIGS / f"{name}.yaml"
    assert load_config(file, BARE) == PRESETS[name]
    assert read_settings(file).keys() == {each.name for each in fields(Config)}


def test_the_settings_of_the_guide_are_those_of_the_7b_recipe() -> None:
    file = CONFIGS / "autoregressive.yaml"
    assert load_config(file, QWEN2VL_7B) == QWEN2VL_7B
    content = read_settings(file)
    named = content["autoregressive_config"].keys() | content.keys()
    assert named == {*METHOD, "autoregressive_config"} - {"fp16", "data_path"}


def test_the_guide_names_these_defaults() -> None:
    config = QWEN2VL_7B
    assert (config.mm_spatial_pool_stride, config.max_frames_num) == (4, 16)
    assert (config.frame_sampling_strategy, config.slow_frame_ratio) == (
        "interleave",
        0.5,
    )
    assert (config.loss_weight, config.data_path) == (0.15, None)
    assert (config.dataloader_num_workers, config.dataloader_pin_memory) == (4, True)
    assert config.dataloader_persistent_workers and config.tf32
    assert config.output_hidden_states
    batches = [
        (
            c.per_device_train_batch_size,
            c.gradient_accumulation_steps,
            c.learning_rate,
            c.max_frames_num,
            c.parallel.compute,
            c.parallel.activation_checkpointing,
        )
        for c in (QWEN2VL_7B, QWEN2VL_72B)
    ]
    assert batches == [
        (2, 8, 2e-5, 16, "bfloat16", "full"),
        (1, 16, 1e-5, 8, "bfloat16", "full"),
    ]
    assert (config.rows_per_step, QWEN2VL_72B.rows_per_step) == (16, 16)


VALUES: dict[str, Any] = {
    "mm_spatial_pool_stride": 8,
    "frame_sampling_strategy": "uniform",
    "slow_frame_ratio": 0,
    "loss_weight": 0,
    "data_path": "lmms-lab/LLaVA-Video-178K",
    "max_frames_num": 32,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 5,
    "learning_rate": 1e-3,
    "tf32": False,
    "output_hidden_states": False,
    "dataloader_num_workers": 1,
    "dataloader_pin_memory": False,
    "dataloader_persistent_workers": False,
}


def test_float32_products_are_rounded_in_runs_of_float32_alone() -> None:
    exact = replace(QWEN2VL_7B, parallel=Parallel(compute="float32"))
    assert QWEN2VL_7B.matmul_precision == "highest"
    assert exact.matmul_precision == "high"
    assert replace(exact, tf32=False).matmul_precision == "highest"


@pytest.mark.parametrize("name", VALUES)
def test_a_setting_of_the_method_stands_in_both_places(name: str) -> None:
    value = VALUES[name]
    assert (*VALUES, *ALIASES) == METHOD
    assert getattr(QWEN2VL_7B, name) != value
    nested = {"autoregressive_config": {name: value}}
    for settings in ({name: value}, nested, nested | {name: value}):
        changed = with_settings(QWEN2VL_7B, settings)
        assert getattr(changed, name) == value
        assert replace(changed, **{name: getattr(QWEN2VL_7B, name)}) == QWEN2VL_7B


@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        ({"bf16": True}, "float32 none", "bfloat16 none"),
        ({"bf16": False}, "bfloat16 none", "float32 none"),
        ({"gradient_checkpointing": True}, "float32 none", "float32 full"),
        ({"gradient_checkpointing": True}, "float32 selective", "float32 selective"),
        ({"gradient_checkpointing": False}, "float32 full", "float32 none"),
        ({"fp16": False}, "float32 none", "float32 none"),
        (
            {"autoregressive_config": {"bf16": True, "gradient_checkpointing": True}},
            "float32 none",
            "bfloat16 full",
        ),
        (
            {"bf16": False, "parallel": {"compute": "float32"}},
            "bfloat16 none",
            "float32 none",
        ),
        (
            {
                "gradient_checkpointing": True,
                "parallel": {"activation_checkpointing": "selective"},
            },
            "bfloat16 none",
            "bfloat16 selective",
        ),
    ],
)
def test_other_names_stand_for_one_setting(
    settings: dict[str, Any], before: str, after: str
) -> None:
    def made(words: str) -> Config:
        compute, kind = words.split()
        changes = {"compute": compute, "activation_checkpointing": kind}
        return fill_settings(TINY, {"parallel": changes})

    assert with_settings(made(before), settings) == made(after)


def test_a_strategy_may_be_a_mapping() -> None:
    mapping = {"name": "repeat_strides", "pattern": [2, 4, 4]}
    for settings in (
        {"frame_sampling_strategy": mapping},
        {"autoregressive_config": {"frame_sampling_strategy": mapping}},
        {"frame_sampling_strategy": "repeat_strides(pattern=(2, 4, 4))"},
    ):
        found = with_settings(TINY, settings).frame_sampling_strategy
        assert found == "repeat_strides(pattern=(2, 4, 4))"
    plain = with_settings(TINY, {"frame_sampling_strategy": {"name": "uniform"}})
    assert plain.frame_sampling_strategy == "uniform"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("2.0e-5", 2e-5),
        (".5", 0.5),
        ("1", 1),
        ("010", 10),
        ("-3", -3),
        ("yes", "yes"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("'2'", "2"),
        ("true", True),
        ("~", None),
        ("", None),
        ("[1, 2e3]", [1, 2000.0]),
    ],
)
def test_plain_words_are_what_they_look_like(
    tmp_path: Path, text: str, value: object
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"key: {text}\n")
    found = read_settings(file)["key"]
    assert (found, type(found)) == (value, type(value))


def test_a_file_without_settings_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# loss_weight: 0.1\n")
    assert load_config(file, TINY) == TINY


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss_wieght: 1", "loss_wieght is no setting; the nearest one is loss_weight"),
        ("bf_16: true", "bf_16 is no setting; the nearest one is bf16"),
        (
            "autoregressive_config: {slow_ratio: 1}",
            (
                "autoregressive_config.slow_ratio is no setting; the nearest one is "
                "autoregressive_config.slow_frame_ratio"
            ),
        ),
        (
            "autoregressive_config: {max_steps: 1}",
            "max_steps is no setting of autoregressive_config; it stands at top level",
        ),
        (
            "parallel: {tpwer: frozen}",
            "parallel.tpwer is no setting; the nearest one is parallel.tower",
        ),
        ("parallel: 3", "parallel is 3; it must be a mapping of settings"),
        (
            "autoregressive_config:",
            "autoregressive_config is None; it must be a mapping of settings",
        ),
        ("- a", "the file is ['a']; it must be a mapping of settings"),
        (
            "loss_weight: .1\nautoregressive_config: {loss_weight: .2}",
            (
                "loss_weight is 0.1 but autoregressive_config.loss_weight is 0.2; they "
                "must agree"
            ),
        ),
        ("loss_weight: a", "loss_weight is 'a'; it must be a number"),
        ("loss_weight: true", "loss_weight is True; it must be a number"),
        ("loss_weight: -1", "loss_weight is -1.0; it must be at least 0"),
        ("max_grad_norm: .inf", "max_grad_norm is inf; it must be finite"),
        ("learning_rate: .nan", "learning_rate is nan; it must be at least 0"),
        ("max_steps: 1e3", "max_steps is 1000.0; it must be a whole number"),
        (f"max_steps: {10**400}", "max_steps has more than 64 bits"),
        (f"learning_rate: {10**400}", "learning_rate has more than 64 bits"),
        ("max_steps: true", "max_steps is True; it must be a whole number"),
        ("tf32: 1", "tf32 is 1; it must be true or false"),
        ("bf16: yes", "bf16 is 'yes'; it must be true or false"),
        ("data_path: 3", "data_path is 3; it must be text or null"),
        ("output_dir: 3", "output_dir is 3; it must be a path"),
        (
            "attention: full",
            "attention is 'full'; it must be one of frame_causal, causal",
        ),
        (
            "parallel: {lora_rank: 1.5}",
            "parallel.lora_rank is 1.5; it must be a whole number",
        ),
        ("parallel: {replicate: 0}", "replicate is 0; it must be at least 1"),
        (
            "bf16: true\nparallel: {compute: float32}",
            (
                "parallel.compute is 'float32' but bf16 or gradient_checkpointing asks "
                "for 'bfloat16'; they must agree"
            ),
        ),
        (
            "gradient_checkpointing: true\nparallel: {activation_checkpointing: none}",
            (
                "parallel.activation_checkpointing is 'none' but bf16 or "
                "gradient_checkpointing asks for 'full'; they must agree"
            ),
        ),
        (
            "fp16: true",
            (
                "fp16 is True; losses are not scaled here, and without that small "
                "gradients vanish in float16: bf16 has the range of float32"
            ),
        ),
        (
            "frame_sampling_strategy: {pattern: [2]}",
            "frame_sampling_strategy is {'pattern': [2]}; it must have a name",
        ),
        (
            "frame_sampling_strategy: unifrom",
            "frame_sampling_strategy is 'unifrom'; the nearest known one is 'uniform'",
        ),
    ],
)
def test_a_file_that_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_config(file, TINY)
    assert str(caught.value) == f"{file}: {message}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nseed: 1", "seed stands twice"),
        ("parallel: {replicate: 1, replicate: 2}", "replicate stands twice"),
        ("{a: [}", "expected the node content"),
        ("seed: &a 1\nmax_steps: *a", r"\*a is an alias"),
        ("data_subsets: &a [*a]", r"\*a is an alias"),
        ("bf16: !!bool maybe", "'maybe' is no bool"),
        ("seed: !!timestamp x", "'x' is no timestamp"),
        ("seed: !!float ''", "'' is no float"),
        ("seed: !!int x", "'x' is no int"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        load_config(file, TINY)
    assert "it is no YAML that can be read" in str(caught.value)
    assert "line 1" in str(caught.value) or "line 2" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 10_000, "maximum recursion depth exceeded"),
        (b"#" * (2**17 + 1), "it has more than 131,072 bytes"),
        (b"data_path: caf\xe9", "can't decode byte 0xe9"),
    ],
)
def test_a_file_that_is_refused_unread(
    tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_config(file, TINY)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="it is no regular file"):
        load_config(tmp_path / "a.yaml", TINY)


def test_the_users_folder_is_meant_by_its_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("data_path: ~/data\nmodel_name_or_path: Qwen/~\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--config=~/settings.yaml", "--output-dir=~/runs", "--eval-data-path=~/x"]
    config = parse_command_line(BARE, words)
    assert config.output_dir == tmp_path / "runs"
    assert config.data_path == str(tmp_path / "data")
    assert config.eval_data_path == str(tmp_path / "x")
    assert replace(BARE, eval_data_path="~/x").eval_data_path == config.eval_data_path
    assert config.model_name_or_path == "Qwen/~"


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("loss_weight: 0.1\nseed: 3\nbf16: true\n")
    found = parse_command_line(TINY, ["--config", str(file), "--loss-weight", "0.2"])
    expected = {"loss_weight": 0.2, "seed": 3, "parallel": {"compute": "bfloat16"}}
    assert found == fill_settings(TINY, expected)
    found = parse_command_line(TINY, [f"--config={file}", "--bf16", "False"])
    assert found.parallel.compute == "float32"
    flags = ["--parallel.compute", "float32", "--config", str(file)]
    assert parse_command_line(TINY, flags).parallel.compute == "float32"
    assert parse_command_line(TINY, []) == TINY


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fp16", "True"], "error: fp16 is True; losses are not scaled here, "),
        (
            ["--bf16", "True", "--parallel.compute", "float32"],
            "error: parallel.compute is 'float32' but bf16 or gradient_checkpointing ",
        ),
        (["--config", "none.yaml"], "error: [Errno 2] No such file or directory: "),
    ],
)
def test_flags_that_cannot_be_meant(flags: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_command_line(TINY, flags)
    assert str(caught.value).startswith(message)


def test_of_all_ranks_the_first_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as caught:
        parse_command_line(TINY, ["--config", "none.yaml"])
    assert caught.value.code == 2


def test_help_shows_every_flag_with_its_default(preloaded: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("loss_weight: 0.375\n")
    words = ("recipes/qwen2vl_tiny.py", "--config", str(file), "--help")
    said, errors, code = preloaded.ask(*words, folder=tmp_path, COLUMNS="200")
    assert code == 0, errors
    names = [each.name for each in fields(Config) if each.name != "parallel"]
    names += [f"parallel.{each.name}" for each in fields(Parallel)]
    for name in [*names, *ALIASES, "config"]:
        assert f"--{name.replace('_', '-')}" in said
    assert "(default: 0.375)" in said
    assert f"(default: {TINY.max_steps})" in said


def test_settings_within_settings_are_compared_one_by_one() -> None:
    before = settings_as_json(BARE)
    copies = replace(BARE, parallel=replace(BARE.parallel, replicate=2))
    check_same_settings(before, copies, free={"parallel.replicate"})
    with pytest.raises(ValueError, match=r"^parallel\.replicate is 2 but"):
        check_same_settings(before, copies, free=set())


def test_other_readers_of_yaml_see_the_same() -> None:
    content = yaml.safe_load(settings_as_yaml(replace(TINY, data_path="yes")))
    assert content["data_path"] == "yes"
    assert content["learning_rate"] == TINY.learning_rate
