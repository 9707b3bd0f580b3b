"""Run a grid of settings with several seeds, and write one table and one figure.

    python recipes/ablate.py recipes/configs/ablation.yaml --jobs 4

Every run is a run of a recipe in a folder of its own. The same command, given again,
leaves finished runs alone and goes on with the others from their checkpoints.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
import tyro

from recipes.ablation import (
    Variant,
    differences,
    markdown_table,
    plan_ablation,
    result_of,
    summarise,
)
from recipes.command_line import given_words
from recipes.config import (
    FREE_TO_CHANGE,
    SETTINGS_FILE,
    Config,
    refuse_other_settings,
)
from recipes.edge.files.provenance import RECORD_FILE, read_starts
from recipes.edge.files.publishing import write_whole
from recipes.edge.ranks.distributed import mistakes_in_words
from recipes.edge.reports.ablation_figure import draw_ablation
from recipes.settings.mappings import read_settings, settings_as_yaml
from recipes.settings.values import by_dotted_name, check_bounds

RECIPE = Path(__file__).with_name("qwen2vl_tiny.py")
"""What is started; a settings file names every setting, so any recipe would do."""

RESULT_DEPENDS_ON = {
    "model_name_or_path",
    "learning_rate",
    "warmup_steps",
    "max_grad_norm",
    "max_steps",
    "data_path",
    "eval_data_path",
}
"""What a run may go on with, but a result must not be taken over with."""


CONSOLE = "console.log"
"""Name of the file in a run's folder that its words go to."""

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Names the GPUs that a process sees, from which each rank takes that of its number."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What the command line says."""

    settings: tyro.conf.Positional[Path]
    """YAML file with base, grid and seeds."""
    output_dir: Path = Path("runs/ablation")
    """Where the runs go, each in a folder of its own, and table and figure."""
    jobs: int = 1
    """Runs at a time. Speeds compare only where the machine has room for all."""
    ranks: int = 1
    """Processes of each run, each with a GPU of its own where there are any."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_bounds(self, {"jobs": (1, inf), "ranks": (1, inf)})


def split_gpus(jobs: int, ranks: int) -> list[dict[str, str]]:
    """Give each of the runs that go at a time GPUs of its own, one for each rank.

    Args:
        jobs: Runs at a time.
        ranks: Processes of each run.

    Returns:
        What to add to the environment of each; nothing where there are no GPUs.

    Raises:
        ValueError: If there are GPUs, but fewer than all of them need.
    """
    if not torch.cuda.is_available():
        return [{}] * jobs
    count = torch.cuda.device_count()
    if count < jobs * ranks:
        raise ValueError(
            f"jobs is {jobs} and ranks is {ranks} but {count} GPUs are visible; every "
            "rank of every run at a time needs one of its own"
        )
    outer = os.environ.get(VISIBLE)
    names = outer.split(",") if outer else [str(number) for number in range(count)]
    firsts = range(0, jobs * ranks, ranks)
    return [{VISIBLE: ",".join(names[first : first + ranks])} for first in firsts]


class Runner:
    """Runs that are under way, so that they can be ended together."""

    def __init__(self, ranks: int, jobs: int) -> None:
        """Start nothing yet; refuse what there are too few GPUs for."""
        self.ranks = ranks
        threads = max(1, (os.cpu_count() or 1) // max(ranks * jobs, 1))
        self.environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
        self._free = SimpleQueue[dict[str, str]]()
        for own in split_gpus(jobs, ranks):
            self._free.put(own)
        self._lock = threading.Lock()
        self._running = set[subprocess.Popen[bytes]]()
        self._ended = False

    def run(self, config: Config) -> int:
        """Run a recipe to its end; give its exit status.

        Args:
            config: Its settings. Its words go to ``console.log`` of its folder.
        """
        folder = config.output_dir
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / SETTINGS_FILE, settings_as_yaml(config))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(self.ranks), str(RECIPE)]
        command += ["--config", str(folder / SETTINGS_FILE)]
        own = self._free.get()
        try:
            return self._wait_for(command, folder / CONSOLE, own)
        finally:
            self._free.put(own)

    def _wait_for(self, command: list[str], log: Path, own: dict[str, str]) -> int:
        """Start a run on GPUs of its own; give its exit status at its end."""
        environment = self.environment | own
        with log.open("ab") as console:
            with self._lock:
                if self._ended:
                    return 1
                process = subprocess.Popen(
                    command, stdout=console, stderr=console, env=environment
                )
                self._running.add(process)
            status = process.wait()
            with self._lock:
                self._running.discard(process)
        return status

    def end(self) -> None:
        """Ask all runs to end, and start no other; they go on another time."""
        with self._lock:
            self._ended = True
            for process in self._running:
                with suppress(ProcessLookupError):
                    process.terminate()


def main(asked: Ablation) -> int:
    """Do the runs that are left, and write what all of them came to.

    Returns:
        The exit status: 1 where a run failed.
    """
    settings = read_settings(asked.settings)
    variants = plan_ablation(settings, asked.output_dir)
    configs = list({c.output_dir: c for v in variants for c in v.configs}.values())
    for config in configs:
        refuse_other_run(config, asked.ranks)
    refuse_other_data(configs)
    left = [config for config in configs if not is_finished(config)]
    say(f"{len(configs)} runs, {len(configs) - len(left)} of them finished")
    runner = Runner(asked.ranks, min(asked.jobs, len(left)))

    def do(config: Config) -> int:
        log = config.output_dir / CONSOLE
        begin = log.stat().st_size if log.exists() else 0
        status = runner.run(config)
        words = f"ended with {status}: {last_words(log, begin)} (see {log})"
        say(f"{config.output_dir.name}: {'finished' if is_finished(config) else words}")
        return not is_finished(config)

    with ThreadPoolExecutor(asked.jobs) as pool:
        try:
            failed = sum(pool.map(do, left))
        except BaseException:
            runner.end()
            raise
    refuse_other_data(configs)
    write_report(asked.output_dir, variants, filter(is_finished, configs))
    return int(failed > 0)


def is_finished(config: Config) -> bool:
    """Tell whether a run has written all that it writes.

    Its last act are the weights of its last step, shown by a rename.
    """
    return (config.output_dir / f"model-{config.max_steps}").exists()


def refuse_other_run(config: Config, ranks: int) -> None:
    """Refuse a folder in which a run with other settings was begun.

    Raises:
        ValueError: If there is one; also where it only ends at another step, since its
            learning rate would then not be that of a run with these settings, or ran on
            another number of ranks, each of which adds rows to a step.
    """
    for start in known_starts(config.output_dir):
        if start["ranks"] != ranks:
            raise ValueError(
                f"{config.output_dir}: ran on {start['ranks']} ranks but ranks is "
                f"{ranks}; a step has rows of each rank, so they must agree"
            )
    try:
        refuse_other_settings(config, free=FREE_TO_CHANGE - RESULT_DEPENDS_ON)
    except ValueError as error:
        raise ValueError(f"{config.output_dir}: {error}") from error


def refuse_other_data(configs: Sequence[Config]) -> None:
    """Refuse finished runs of the same data settings whose data are not the same.

    Raises:
        ValueError: If the names or texts of their samples differ, since their numbers
            would not compare.
    """
    first = dict[object, tuple[Path, dict[str, Any]]]()
    for config in filter(is_finished, configs):
        texts = {name: last_start(config.output_dir)[name] for name in TEXTS}
        made = None if config.data_path else config.seed
        where = config.data_path, config.data_subsets, config.eval_data_path, made
        folder, others = first.setdefault(where, (config.output_dir, texts))
        if texts != others:
            raise ValueError(
                f"{config.output_dir} and {folder} have samples of other names or "
                "texts; an ablation compares runs on the same data, so one of the two "
                "has to go"
            )


TEXTS = ("data.train.texts", "data.held_out.texts")
"""Where the record of a start sums up what the samples say."""


def known_starts(folder: Path) -> list[dict[str, Any]]:
    """Read the starts of a run, with dotted names; refuse one that says too little."""
    starts = [dict(by_dotted_name(start)) for start in read_starts(folder)]
    for start in starts:
        for name in ("ranks", *TEXTS):
            if name not in start:
                raise ValueError(
                    f"{folder / RECORD_FILE} has a start without {name}; a run records "
                    "it, so this is no run of this version"
                )
    return starts


def last_start(folder: Path) -> dict[str, Any]:
    """Read the last start of a finished run."""
    starts = known_starts(folder)
    if not starts:
        raise ValueError(
            f"{folder / RECORD_FILE} has no start; a finished run has at least one"
        )
    return starts[-1]


def last_words(log: Path, begin: int) -> str:
    """Give the line of a console that says why a run ended: its error, or the last.

    Args:
        log: The file.
        begin: Byte at which the words of this start begin.
    """
    lines = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    with_words = [line.strip() for line in lines if any(map(str.isalnum, line))]
    errors = [line for line in with_words if line.startswith("error: ")]
    return ["it said nothing", *with_words, *errors][-1]


def write_report(
    folder: Path, variants: Sequence[Variant], finished: Iterable[Config]
) -> None:
    """Write ``ablation.md``, ``ablation.json`` and ``ablation.svg``."""
    folders = [config.output_dir for config in finished]
    results = {each: result_of(each) for each in folders}
    rows = summarise(variants, results)
    notes = differences(
        {each.name: result for each, result in results.items()},
        {each.name: last_start(each) for each in folders},
    )
    text = "\n".join([markdown_table(rows), *(f"{note}\n" for note in notes)])
    (folder / "ablation.json").write_text(json.dumps(rows, indent=1) + "\n")
    (folder / "ablation.md").write_text(text, encoding="utf-8")
    draw_ablation(rows, folder / "ablation.svg")
    say(f"{text}\n{folder / 'ablation.md'}, .json and .svg are written")


def say(text: str) -> None:
    """Write to standard output at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # Ended from outside, it ends its runs, too.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    with mistakes_in_words(has_ranks=False):
        sys.exit(main(tyro.cli(Ablation, args=given_words(), description=__doc__)))
