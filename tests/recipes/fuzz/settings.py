"""Hostile settings files: bombs, depth, numbers that are none, names twice."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.recipes.fuzz.cases import (
    REFUSED,
    USED_OR_REFUSED,
    Case,
    Verdict,
    cuts,
    flips,
)

ROOT = Path(__file__).parents[3]


def settings_cases() -> Iterator[Case]:
    """Give all hostile settings files."""
    yield from _bombs()
    yield from _values()
    yield from _files()


def settings_case(
    family: str,
    name: str,
    content: bytes | Callable[[Path], object],
    may: tuple[Verdict, ...] = REFUSED,
) -> Case:
    """Give the case of a file for ``--config``."""

    def make(folder: Path) -> None:
        if isinstance(content, bytes):
            (folder / "settings.yaml").write_bytes(content)
        else:
            content(folder / "settings.yaml")

    return Case(
        kind="settings", family=f"yaml: {family}", name=name, make=make, may=may
    )


def _bombs() -> Iterator[Case]:
    laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)
    ]
    bombs = {
        "unknown": "\n".join(laughs),
        "as a number": f"seed: {_inline(11)}",
        "as a list": f"data_subsets: {_inline(11)}",
        "as a mapping": f"parallel: {_inline(11)}",
        "as settings": f"autoregressive_config: {_inline(11)}",
    }
    for name, text in bombs.items():
        yield settings_case("bombs", f"anchors, {name}", text.encode())
    merges = ["b0: &b0 {x: 1}"] + [
        f"b{n}: &b{n} {{!!merge <<: [{', '.join([f'*b{n - 1}'] * 9)}]}}"
        for n in range(1, 9)
    ]
    yield settings_case("bombs", "merges", "\n".join(merges).encode())
    for name, text in {
        "a list in itself": "data_subsets: &a [*a]",
        "a mapping in itself": "&a {parallel: *a}",
        "a mapping as its key": "&a {*a : 1}",
        "an unknown anchor": "seed: *nothing",
        "an anchor": "seed: &a 3",
        "an anchor twice": "seed: &a 3\nmax_steps: *a",
    }.items():
        may = USED_OR_REFUSED if name == "an anchor" else REFUSED
        yield settings_case("bombs", name, text.encode(), may)
    for depth in (50, 1000, 100_000):
        for opening in ("[", "{a: ", "- ", "? "):
            yield settings_case(
                "depth", f"{depth} of {opening}", (opening * depth).encode()
            )
            closed = "seed: " + "[" * depth + "]" * depth
            yield settings_case("depth", f"{depth} closed", closed.encode())
    long = "a: " + "x" * 10_000_000
    yield settings_case("depth", "a long word", long.encode())
    many = "".join(f"k{n}: 1\n" for n in range(100_000))
    yield settings_case("depth", "many keys", many.encode())


def _inline(depth: int) -> str:
    """Write a bomb as one value."""
    text = "&a0 [x, x, x, x, x, x, x, x, x]"
    for number in range(1, depth + 1):
        others = ", ".join([f"*a{number - 1}"] * 8)
        text = f"&a{number} [{text}, {others}]"
    return text


VALUES = (
    *(".nan", ".inf", "-.inf", "1e400", "-1e400", "1e-400", "9" * 400, "-" + "9" * 400),
    *(
        "9" * 10_000,
        str(2**31),
        str(2**63),
        str(2**64),
        "-1",
        "0",
        "0.5",
        "1_000",
        "0x10",
    ),
    *(
        "null",
        "~",
        "true",
        "yes",
        "2026-11-27",
        "'x'",
        "''",
        "[]",
        "{}",
        "[1]",
        "!!set {}",
    ),
    *(
        "!!binary aGk=",
        "!!python/none",
        "!!python/object/apply:os.getcwd []",
        "!!int x",
    ),
    *("!!python/name:os.system", "!!timestamp 2026-01-01", "!!float nan", "!own 3"),
    *('"\\ud800"', '"\\0"', "|\n  a\n  b"),
)

SETTINGS = (
    *("seed", "max_steps", "learning_rate", "slow_frame_ratio", "loss_weight"),
    *("max_bad_share", "max_pixels", "tokens_per_row", "data_path", "data_subsets"),
    *("attention", "frame_sampling_strategy", "tf32", "parallel", "video_fps"),
    *(
        "mm_spatial_pool_stride",
        "max_frames_num",
        "output_dir",
        "autoregressive_config",
    ),
)


def _values() -> Iterator[Case]:
    for setting in SETTINGS:
        for value in VALUES:
            text = f"{setting}: {value}\n".encode()
            yield settings_case(
                "values", f"{setting} is {value[:40]}", text, USED_OR_REFUSED
            )
    for text in (
        "seed: 1\nseed: 1",
        "seed: 1\n'seed': 2",
        "parallel: {compute: float32}\nparallel: {}",
        "? [a]\n: 1",
        "? {a: b}\n: 1",
        ".nan: 1\n.nan: 2",
        "null: 1",
        "1: 1",
        "seed: 1\n---\nseed: 2",
    ):
        yield settings_case("twice", repr(text), text.encode())


def _files() -> Iterator[Case]:
    whole = (ROOT / "recipes/configs/qwen2vl_7b.yaml").read_bytes()
    for name, cut in cuts(whole, 10):
        yield settings_case("damaged", f"cut, {name}", cut, USED_OR_REFUSED)
    for name, damaged in flips(whole, 60, seed=11):
        yield settings_case("damaged", name, damaged, USED_OR_REFUSED)
    broken = {
        "latin": "data_path: caf\u00e9".encode("latin-1"),
        "utf-16": "seed: 1".encode("utf-16"),
        "controls": b"seed: \x01",
        "zeros": bytes(100),
        "half a pair": b"data_path: \xed\xa0\x80",
        "tabs": b"\tseed: 1",
        "a list": b"- seed",
        "a word": b"seed",
        "a pickle": b"\x80\x04\x95",
    }
    for name, content in broken.items():
        yield settings_case("damaged", name, content)
    yield settings_case("damaged", "absent", lambda path: None)
    yield settings_case("damaged", "a folder", Path.mkdir)
    yield settings_case("damaged", "a fifo", os.mkfifo)
    for device in ("/dev/zero", "/dev/tty"):
        yield settings_case(
            "damaged", device, lambda path, target=device: path.symlink_to(target)
        )
    yield settings_case(
        "damaged",
        "1 TiB of holes",
        lambda path: (path.touch(), os.truncate(path, 2**40)),
    )
