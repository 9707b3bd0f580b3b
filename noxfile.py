"""Tasks of the project: ``nox -l`` lists them, ``nox -s lint`` runs one.

Each session makes a virtual environment with pip. Where an environment with the
``dev`` extra is active already, ``nox --no-venv --no-install`` uses that one.
"""

import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "tests"]


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests, with every annotation checked."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session
def compile(session: nox.Session) -> None:
    """Run the tests of torch.compile, which cannot see through checked functions."""
    session.install("-e", ".[dev]")
    unchecked = "--jaxtyping-packages="
    rooms = ["tests/models", "tests/recipes"]
    session.run("pytest", unchecked, *rooms, "-k", "compile", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and spelling."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.install("-e", ".[dev]")
    session.run("mypy")


@nox.session
def faults(session: nox.Session) -> None:
    """Harm runs at fifty random instants; each ends as an undisturbed one."""
    session.install("-e", ".[dev]")
    instants = {"FASTSLOW_FAULTS": "50"}
    session.run(
        "pytest", "tests/distributed/test_faults.py", *session.posargs, env=instants
    )


@nox.session
def combinations(session: nox.Session) -> None:
    """Train under any two settings together, and hold each run to a plain one."""
    session.install("-e", ".[dev]")
    file = "tests/distributed/test_combinations.py"
    session.run("pytest", file, *session.posargs, env={"FASTSLOW_COMBINATIONS": "1"})


@nox.session
def steps(session: nox.Session) -> None:
    """Take 200 steps under settings drawn at random, and hold each to one in loops."""
    session.install("-e", ".[dev]")
    file = "tests/oracles/test_whole_step.py"
    session.run("pytest", file, *session.posargs, env={"FASTSLOW_STEPS": "200"})


PAGES = "docs/_build/html"


def build_pages(session: nox.Session, builder: str, output: str, *options: str) -> None:
    """Run one of Sphinx's builders; every warning is an error."""
    strict = ["-n", "-W", "--keep-going", "-b", builder]
    session.run("sphinx-build", *strict, *options, "docs", output)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the pages without a warning, run their examples, test what was built."""
    session.install("-e", ".[docs]")
    shared = ["-d", "docs/_build/doctrees"]  # what one has read serves the other
    build_pages(session, "html", PAGES, *shared)
    build_pages(session, "doctest", "docs/_build/doctest", *shared)
    build_pages(session, "html", f"{PAGES}/zh_CN", "-D", "language=zh_CN")
    quick = ["--jaxtyping-packages=", "tests/docs/test_pages.py"]
    session.run("pytest", *quick, *session.posargs, env={"DOCS_PAGES": PAGES})


@nox.session
def translate(session: nox.Session) -> None:
    """Bring the catalogues of translations up to date with the English pages."""
    session.install("-e", ".[docs]")
    build_pages(session, "gettext", "docs/_build/gettext")
    for catalogue in sorted(Path("docs/locale").rglob("*.po")):
        page = catalogue.stem
        source = ["-i", f"docs/_build/gettext/{page}.pot", "-D", page]
        target = ["-d", "docs/locale", "-l", catalogue.parents[1].name]
        form = ["--omit-header", "--ignore-obsolete", "--width", "88"]
        session.run("pybabel", "update", *source, *target, *form)


@nox.session
def links(session: nox.Session) -> None:
    """Ask for every address outside that the pages name."""
    session.install("-e", ".[docs]")
    build_pages(session, "linkcheck", "docs/_build/linkcheck")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure and end with one table; ``-- --results docs/benchmarks`` writes it."""
    session.install("-e", ".[dev]", "numba")  # compiles a way that others go
    quick = ["--jaxtyping-packages=", "--benchmark-quiet"]
    # Else the kernel gives memory page by page, which hides what is measured.
    huge_pages = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    session.run("pytest", *quick, "tests/benchmarks", *session.posargs, env=huge_pages)


@nox.session
def kernels(session: nox.Session) -> None:
    """Interpret and compile the kernels of a GPU, without one."""
    session.install("-e", ".[dev]", "triton")
    at_once = ["-n", "auto", "--dist", "worksteal"]  # all are of one file
    file = "tests/oracles/test_gpu_kernels.py"
    session.run("pytest", *at_once, file, *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Check and measure on this machine's GPU what runs there, within ten minutes."""
    session.install("-e", ".[dev]")
    session.run("bash", "tests/benchmarks/gpu.sh", *session.posargs, external=True)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Run every hostile input, each under a limit of memory and of time."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "tests.recipes.fuzz", *session.posargs)


@nox.session
def recipes(session: nox.Session) -> None:
    """Train the tiny recipe on two ranks."""
    session.install("-e", ".[recipes]")
    torchrun = ["torchrun", "--standalone", "--nproc-per-node", "2"]
    with tempfile.TemporaryDirectory() as folder:  # a used one would be resumed
        recipe = ["recipes/qwen2vl_tiny.py", "--output-dir", folder]
        session.run(*torchrun, *recipe, *session.posargs)


@nox.session
def reproduce(session: nox.Session) -> None:
    """Train a short run twice on two ranks; both have to be the same, bit for bit."""
    session.install("-e", ".[recipes]")
    torchrun = ["torchrun", "--standalone", "--nproc-per-node", "2"]
    short = ["--max-steps", "20", "--save-steps", "10", "--warmup-steps", "5"]
    with tempfile.TemporaryDirectory() as folder:
        runs = [f"{folder}/first", f"{folder}/second"]
        for run in runs:
            recipe = ["recipes/qwen2vl_tiny.py", "--output-dir", run, *short]
            session.run(*torchrun, *recipe, *session.posargs)
        session.run("python", "recipes/reproduce.py", *runs)


@nox.session
def integrations(session: nox.Session) -> None:
    """Run the tests that need packages of others: lmms-eval."""
    # It asks for an older av than ours, and imports what filelock 4 has not.
    session.install("lmms-eval>=0.7.3", "filelock<4")
    session.install("-e", ".[dev]")
    session.run("pytest", "tests/integrations", *session.posargs)


@nox.session
def lmms_engine(session: nox.Session) -> None:
    """Run the tests that need lmms-engine, over whose transformers ours is put."""
    session.install("lmms-engine==0.1.4", "torch>=2.11,<2.14")
    session.install("-e", ".[dev]", "transformers<5.24")
    session.run("pytest", "tests/integrations", "-k", "lmms_engine", *session.posargs)
