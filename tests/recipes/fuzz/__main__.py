"""Runs the corpus of hostile inputs: ``python -m tests.recipes.fuzz``.

Cases run in a process with a limit of memory. One that dies or takes too long is
named, and another process goes on with the next case.
"""

import argparse
import json
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from unicodedata import category

SECONDS = 120
"""Seconds that a case may take."""

LONGEST = 1000
"""Characters of a reason at most."""

COMMAND = [sys.executable, "-m", "tests.recipes.fuzz.worker"]

Listed = tuple[str, str, list[str]]
"""Family and name of a case, and what may become of it."""


class Worker:
    """A process that runs cases."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self.cases: list[Listed] = json.loads(self._answers.readline())

    def run(self, number: int) -> tuple[str, list[str]]:
        """Give verdict and reasons of a case, ``died`` or ``hung`` among them."""
        self._requests.write(f"{number}\n")
        self._requests.flush()
        ready, _, _ = select.select([self._answers], [], [], SECONDS)
        answer = self._answers.readline() if ready else ""
        if answer:
            found = json.loads(answer)
            return found["verdict"], found["said"]
        self._process.kill()
        code = self._process.wait()
        return ("died", [f"exit code {code}"]) if ready else ("hung", [])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def outcomes(
    worker: Worker, numbers: Sequence[int]
) -> Iterator[tuple[Listed, str, list[str]]]:
    """Run cases, and give each with its verdict and reasons."""
    for number in numbers:
        verdict, said = worker.run(number)
        yield worker.cases[number], verdict, said
        if verdict in {"died", "hung"}:
            worker.close()
            worker = Worker()
    worker.close()


def complaint(may: Sequence[str], verdict: str, said: Sequence[str]) -> str | None:
    """Say what is wrong with an outcome; None if nothing is."""
    if verdict not in may:
        return f"{verdict}; it may be {' or '.join(may)}"
    if verdict != "used" and not said:
        return "without a reason"
    for reason in said:
        odd = {each for each in reason if category(each) in {"Cc", "Cs"}} - {*"\n\t"}
        if odd or len(reason) > LONGEST:
            return f"with an unreadable reason of {len(reason)} characters"
        if "allocate" in reason or "memory" in reason.lower():
            return "out of memory"
    return None


def chosen(cases: Sequence[Listed], most: int | None, only: str) -> list[int]:
    """Choose cases by name, and of each family so many, evenly."""
    families = dict[str, list[int]]()
    for number, (family, name, _) in enumerate(cases):
        if only in f"{family}: {name}":
            families.setdefault(family, []).append(number)
    return [
        number
        for numbers in families.values()
        for number in numbers[:: -(-len(numbers) // (most or len(numbers)))]
    ]


def main() -> int:
    """Run cases, print what became of each family, and count what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--of-each-family", type=int, help="how many; all by default")
    parser.add_argument("--only", default="", help="part of their names")
    options = parser.parse_args()
    worker = Worker()
    numbers = chosen(worker.cases, options.of_each_family, options.only)
    verdicts, wrong = dict[str, Counter[str]](), 0
    for (family, name, may), verdict, said in outcomes(worker, numbers):
        verdicts.setdefault(family, Counter())[verdict] += 1
        trouble = complaint(may, verdict, said)
        if trouble:
            wrong += 1
            print(f"WRONG {family}: {name}: {trouble}", *said, sep="\n    ", flush=True)
    for family, counts in verdicts.items():
        print(f"{family}: {', '.join(f'{n} {what}' for what, n in counts.items())}")
    print(f"{len(numbers)} cases, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
