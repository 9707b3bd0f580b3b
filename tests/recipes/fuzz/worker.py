"""Runs hostile inputs on the real path, under a limit of memory.

Says which cases there are, in a line of JSON. Then reads their numbers, one a line,
and answers each with another.
"""

import dataclasses
import json
import resource
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp

import torch

from fastslow import StreamState
from fastslow.qwen2_vl import Family, VisionGeometry
from recipes.config import Config, load_config
from recipes.edge.data.archives import ArchiveStore
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.data_files import list_subsets
from recipes.edge.data.index import join_samples, write_index
from recipes.edge.data.loader import PackedRows
from recipes.edge.data.quarantine import Quarantine
from recipes.edge.data.sample_set import plan_samples
from recipes.edge.data.samples import ClipSettings
from recipes.edge.evaluation.answers import load_model
from recipes.edge.media import containers
from recipes.edge.ranks.distributed import process_group
from recipes.edge.weights.loading import (
    build_meta_model,
    find_weights,
    load_pretrained,
    materialize,
)
from recipes.edge.weights.pretrained import read_tokenizer
from recipes.edge.weights.tiny import train_tokenizer
from recipes.settings.mappings import settings_as_yaml
from tests.recipes.fuzz.cases import Case
from tests.recipes.fuzz.corpus import all_cases

MEMORY = 2**30
"""Bytes that a case may take on top of what the process has when it begins."""

CLIP_SECONDS = 3.0
"""Time that a clip may take here; long enough for any that ends."""

SETTINGS = ClipSettings(
    family=Family(geometry=VisionGeometry(min_pixels=28 * 28, max_pixels=84 * 84)),
    max_frames=6,
    strategy="interleave",
    slow_ratio=0.5,
    patch_stride=4,
    fast_scale=1,
    attention="frame_causal",
    capacity=2048,
    row_buckets=0,
)
BY_SECONDS = replace(
    SETTINGS,
    family=replace(SETTINGS.family, tokens_per_second=25),
    video_fps=2.0,
    add_time_instruction=True,
)
"""The same, where times of frames become positions and text."""

TOKENIZER = train_tokenizer((), vocabulary_size=300)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of an input.

    Attributes:
        verdict: ``used``, ``skipped``, ``refused``, or what must not happen:
            ``crashed`` with another error, or ``lost`` where the count is wrong.
        said: The reasons, or the error.
    """

    verdict: str
    said: tuple[str, ...] = ()


def use_dataset(folder: Path) -> Outcome:
    """Plan and decode a dataset as a run does, and count what became of its rows."""
    try:
        found = [_use(folder, name, each) for name, each in VARIANTS.items()]
    except (ValueError, FileNotFoundError) as error:
        return Outcome(verdict="refused", said=(str(error),))
    return max(found, key=lambda each: ORDER.index(each.verdict))


VARIANTS = {"even": SETTINGS, "seconds": BY_SECONDS}
ORDER = ("skipped", "used", "lost")


def _use(folder: Path, name: str, settings: ClipSettings) -> Outcome:
    run, data, bad = folder / name, folder / "data", list[BadSample]()
    run.mkdir()
    store = ArchiveStore(folder / "cache")
    joined = join_samples(list_subsets(str(data)), store, bad.append)
    index = write_index(run / "index.arrow", joined)
    planned, unplanned = plan_samples(index, settings, TOKENIZER, store)
    bad += unplanned
    rows = PackedRows(planned)
    used = list[str]()
    for number in range(len(planned)):
        row = rows[(number,), StreamState()]
        used += row.sample_ids
        bad += row.bad
    _quarantine(run, bad)
    said = tuple(each.reason for each in bad)
    lines = data / "rows.jsonl"
    if lines.is_file() and lines.stat().st_size < 2**30:
        there = sum(1 for line in lines.read_bytes().split(b"\n") if line.strip())
        if there != len(used) + len(bad):
            return Outcome(verdict="lost", said=said)
    others = [each for each in used if each != "good"]
    return Outcome(verdict="used" if others or not bad else "skipped", said=said)


def _quarantine(run: Path, bad: list[BadSample]) -> None:
    """Name the bad samples as a run does, and read their names back."""
    with process_group() as world:
        quarantine = Quarantine(run, num_samples=1000, max_share=1.0, world=world)
        quarantine.add(bad)
    lines = (run / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [dataclasses.asdict(b) for b in bad]


def use_model(folder: Path) -> Outcome:
    """Load a checkpoint as training does, and as an evaluation does."""
    config = Config(output_dir=folder)
    try:
        with process_group() as world:
            checkpoint = find_weights(folder / "model")
            read_tokenizer(checkpoint)
            model = build_meta_model(checkpoint)
            materialize(model, world.device)
            load_pretrained(checkpoint, model)
            load_model(checkpoint, config, world.device)
    except (ValueError, OSError) as error:
        return Outcome(verdict="refused", said=(str(error),))
    finally:
        if (folder / "executed").exists():
            raise RuntimeError("code of the checkpoint was executed")
    return Outcome(verdict="used")


def use_settings(folder: Path) -> Outcome:
    """Read a settings file, write the settings, and read them again."""
    try:
        preset = Config(output_dir=folder)
        config = load_config(folder / "settings.yaml", preset)
    except (ValueError, OSError) as error:
        return Outcome(verdict="refused", said=(str(error),))
    (folder / "again.yaml").write_text(settings_as_yaml(config))
    assert load_config(folder / "again.yaml", preset) == config
    torch.manual_seed(config.seed)
    return Outcome(verdict="used")


RUNNERS: dict[str, Callable[[Path], Outcome]] = {
    "data": use_dataset,
    "model": use_model,
    "settings": use_settings,
}
"""What takes an input, by its kind."""


def run_case(case: Case) -> Outcome:
    """Make an input, take it, and remove it."""
    folder = Path(mkdtemp())
    try:
        case.make(folder)
        return RUNNERS[case.kind](folder)
    except Exception:
        return Outcome(verdict="crashed", said=(traceback.format_exc(),))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def limit_memory() -> None:
    """Let the process take ``MEMORY`` more bytes of its own than it has now.

    Reserved addresses and mapped files, of which torch has many, do not count.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (now,) = (int(line.split()[1]) for line in lines if line.startswith("VmData"))
    limit = now * 1024 + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def main() -> None:
    """Answer until there is no more number."""
    cases = all_cases()
    listed = [(case.family, case.name, case.may) for case in cases]
    containers.CLIP_SECONDS = CLIP_SECONDS
    limit_memory()
    sys.stdout.write(json.dumps(listed) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        outcome = run_case(cases[int(line)])
        sys.stdout.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
