"""Where the answers of a model end, and what of them is text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2VLForConditionalGeneration,
)

from fastslow import TextSpan
from fastslow.qwen2_vl import FastSlowQwen2VL, generate_answers
from fastslow.testing import strategies as fst
from recipes.config import Config
from recipes.edge.data.archives import ArchiveStore
from recipes.edge.data.conversations import Turn
from recipes.edge.data.index import Sample, write_index
from recipes.edge.data.sample_set import PlannedSamples, plan_samples
from recipes.edge.evaluation import answers
from recipes.edge.evaluation.answers import (
    answer_prompts,
    find_end_tokens,
    find_settings,
    load_model,
    pack_prompts,
)
from recipes.edge.weights.pretrained import read_tokenizer
from recipes.edge.weights.tiny import (
    SPECIAL_TOKENS,
    tiny_config,
    train_tokenizer,
)
from tests.recipes.test_loader import SETTINGS

CPU = torch.device("cpu")
TEXT_END, TURN_END = (
    SPECIAL_TOKENS.index(name) for name in ("<|endoftext|>", "<|im_end|>")
)


def ask(
    folder: Path, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] = ("?",)
) -> PlannedSamples:
    """Plan questions without a clip."""
    asked = (
        Sample(sample_id="a", source=f"a:{n}", turns=(Turn(role="user", text=text),))
        for n, text in enumerate(texts)
    )
    index = write_index(folder / "index.arrow", asked)
    planned, bad = plan_samples(index, SETTINGS, tokenizer, ArchiveStore(folder))
    assert bad == []
    return planned


def model_that_says(tokens: Sequence[int], *, after: int) -> Any:
    """Make a model in which each token is followed by the next of these."""
    backbone = Qwen2VLForConditionalGeneration(tiny_config(300))
    language_model = backbone.model.language_model
    with torch.no_grad():
        for layer in language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        language_model.embed_tokens.weight.zero_()
        backbone.lm_head.weight.zero_()
        for place, (before, token) in enumerate(
            zip((after, *tokens), tokens, strict=False)
        ):
            language_model.embed_tokens.weight[before, place] = 1
            backbone.lm_head.weight[token, place] = 1
    return backbone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a checkpoint that says x, an end of text, y, and an end of turn."""
    folder = tmp_path / "model"
    tokenizer = train_tokenizer((), vocabulary_size=300)
    last = ask(tmp_path, tokenizer)[0].spans[-1]
    assert isinstance(last, TextSpan)
    x, y = tokenizer.convert_tokens_to_ids(["x", "y"])
    said = (x, TEXT_END, y, TURN_END, x)
    model_that_says(said, after=last.token_ids[-1]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answer(folder: Path) -> str:
    model = load_model(folder, Config(output_dir=folder), CPU)
    prompts = ask(folder, read_tokenizer(folder))
    (found,) = answer_prompts(model, prompts, max_new_tokens=5)
    assert found.error is None
    return found.text


@pytest.mark.parametrize("name", [".", "checkpoint-4"])
@pytest.mark.parametrize("models", [("model-2", "model-4"), ()])
def test_of_a_run_its_models_are_asked(
    name: str, models: tuple[str, ...], tmp_path: Path
) -> None:
    for folder in ("checkpoint-4", *models):
        (tmp_path / folder).mkdir()
    (tmp_path / "settings.yaml").write_text("{}")
    with pytest.raises(ValueError) as error:
        find_settings(tmp_path / name, None)
    assert str(error.value) == (
        f"{tmp_path / name} has no config.json; what can be asked of the run "
        f"{tmp_path} is a model-N, of which it has {', '.join(models) or 'none'}"
    )


def test_settings_are_beside_the_folder_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "run" / "model-4"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (tmp_path / "run" / "settings.yaml").write_text("seed: 7")
    (tmp_path / "latest").symlink_to(model)
    monkeypatch.chdir(model)
    for name in (model, Path(), tmp_path / "latest"):
        assert find_settings(name, None).seed == 7
    (tmp_path / "run" / "settings.yaml").unlink()
    with pytest.raises(ValueError) as error:
        find_settings(Path(), None)
    assert str(error.value) == (
        f"{tmp_path / 'run' / 'settings.yaml'} does not exist; --config says how clips "
        "become tokens where the checkpoint is of no run"
    )


def test_a_cpu_computes_in_float32(folder: Path) -> None:
    config = Config(output_dir=folder)
    assert config.parallel.compute_dtype == torch.bfloat16
    model = load_model(folder, config, CPU)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ([TURN_END, TEXT_END], "x"),
        ([TEXT_END], "x"),
        (TEXT_END, "x"),
        (TURN_END, "xy"),
        ([], "xy"),
        (None, "xy"),
    ],
)
def test_an_answer_ends_with_any_token_that_the_checkpoint_names(
    folder: Path, ends: object, text: str
) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": ends}))
    assert answer(folder) == text


def test_a_long_prompt_does_not_lengthen_the_cache_of_short_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = list[int]()

    def generate(*about: Any, **how: Any) -> list[tuple[int, ...]]:
        segments = about[2].layout.segment_ids
        lengths = segments[segments >= 0].bincount()[:-1]  # the blank clip is the last
        cached.append(len(lengths) * (int(lengths.max()) + 2))
        return generate_answers(*about, **how)

    monkeypatch.setattr(answers, "generate_answers", generate)
    model = load_model(folder, Config(output_dir=folder), CPU)
    texts = ("?", "? " * 80, *["?"] * 30)
    prompts = ask(folder, read_tokenizer(folder), texts)
    assert max(prompts.lengths) > 5 * min(prompts.lengths)
    said = {
        answer.number: (rank, answer.text)
        for rank in range(2)
        for answer in answer_prompts(
            model, prompts, max_new_tokens=2, rank=rank, world_size=2
        )
    }
    assert sorted(said) == list(range(len(texts)))
    assert {text for _, text in said.values()} == {"x"}
    assert {rank for rank, _ in said.values()} == {0, 1}
    assert max(cached) <= SETTINGS.capacity + 2


@given(fst.packing_problems(max_items=40), st.integers(1, 30))
@example(([8000, *[60] * 200], 20_000), 64)
@example(([], 1), 1)
def test_pack_prompts(problem: tuple[list[int], int], most: int) -> None:
    lengths, capacity = problem
    rows = pack_prompts(lengths, capacity, most)
    order = [number for row in rows for number in row]
    assert order == sorted(range(len(lengths)), key=lambda each: (-lengths[each], each))
    widths = [lengths[row[0]] + most for row in rows]
    for row, width in zip(rows, widths, strict=True):
        assert row
        assert len(row) * width <= capacity + most
    for row, width in zip(rows[:-1], widths[:-1], strict=True):
        assert (len(row) + 1) * width > capacity + most


def test_what_does_not_fit_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a prompt has 9 tokens; a row holds 8$"):
        pack_prompts([1, 9], 8, 1)
    with pytest.raises(ValueError, match=r"^max_new_tokens is 0; it must be at least"):
        pack_prompts([1], 8, 0)


def test_without_generation_settings_the_tokenizer_ends_answers(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert answer(folder) == "xy"


def test_find_end_tokens_is_what_either_names() -> None:
    tokenizer = train_tokenizer((), vocabulary_size=300)
    model = FastSlowQwen2VL(model_that_says((), after=0))
    for named, found in {
        None: {TURN_END},
        5: {5, TURN_END},
        TURN_END: {TURN_END},
        (5, TEXT_END): {5, TEXT_END, TURN_END},
    }.items():
        ends = list(named) if isinstance(named, tuple) else named
        model.backbone.generation_config = GenerationConfig(eos_token_id=ends)
        assert find_end_tokens(model, tokenizer) == found
    tokenizer.eos_token = None
    assert find_end_tokens(model, tokenizer) == {5, TEXT_END}


def test_an_answer_ends_before_the_first_of_its_stop_texts(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    model = load_model(folder, Config(output_dir=folder), CPU)
    prompts = ask(folder, read_tokenizer(folder))
    for stops, text in {("y",): "x", ("y", "x"): "", ("z",): "xy"}.items():
        (found,) = answer_prompts(model, prompts, max_new_tokens=5, stop_texts=stops)
        assert found.text == text


@pytest.mark.parametrize("ends", ["x", [1, "x"], 1.5, {"a": 1}])
def test_ends_that_are_no_tokens_are_refused(folder: Path, ends: object) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(ValueError) as caught:
        load_model(folder, Config(output_dir=folder), CPU)
    assert str(caught.value) == (
        f"{file} has eos_token_id {ends}; it must be an id or a list of ids"
    )
