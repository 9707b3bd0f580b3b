"""A Python that starts at once: forked from a process that has imported all already.

Run as it is, with names of modules, this is the process that forks. Each line that it
reads is JSON. An object says what to start: a script with its arguments, its folder,
its environment, and files for what it says; it is answered with the id of the process.
An id is answered with the exit code of its process, null while there is none.

A torchrun that is started so forks its ranks in turn (``--run-path --start-method
fork``) and each runs this file, which runs the script. So agent, rendezvous, ranks and
their deaths are those of a real run, and only the imports, nearly all of the time of a
short one, are saved.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import sys
from typing import Never

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 1, 24, 1
LIBC = ctypes.CDLL(None)
SERVE = "serve"


def obey_permissions() -> Never:
    """Start anew, so that a folder without write permission refuses root as well."""
    LIBC.prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
    os.execv(sys.executable, [sys.executable, __file__, SERVE, *sys.argv[1:]])


def serve(modules: list[str]) -> str | None:
    """Import all, then fork and wait, as asked.

    Returns:
        In a forked process, the script that it is to run; otherwise nothing.
    """
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # what is imported stays, and no process need look through it
    codes: dict[int, int | None] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if isinstance(question, dict):
            answer = os.fork()
            if not answer:
                return become(**question)
            codes[answer] = None
        else:
            if codes[question] is None:
                ended, status = os.waitpid(question, os.WNOHANG)
                if ended:
                    codes[question] = os.waitstatus_to_exitcode(status)
            answer = codes[question]
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()
    return None


def become(
    words: list[str], cwd: str, env: dict[str, str], log: str, errors: str
) -> str:
    """Be as if Python had been started anew; give the script that is to run."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for target, (file, flags) in enumerate(
        ((os.devnull, os.O_RDONLY), (log, appended), (errors, appended))
    ):
        os.dup2(os.open(file, flags), target)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(":") if path]
    sys.argv = words
    return words[0]


def be_a_rank() -> str:
    """Give the script of a rank. A forked one would die with torchrun; no real one."""
    LIBC.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    sys.argv = sys.argv[1:]
    return sys.argv[0]


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        script: str | None = be_a_rank()
    elif SERVE in sys.argv:
        script = serve(sys.argv[2:])
    else:
        obey_permissions()
    if script is not None:
        runpy.run_path(script, run_name="__main__")
