"""A torchrun of the tiny recipe that starts at once: forked, with all imports done.

Run as it is, this is the process that forks. Each line that it reads is a JSON array: a
file for what is said, a number of ranks, and the arguments of the recipe; it forks a
torchrun and answers with its id. A line with an id is answered with the exit code, null
while there is none.

torchrun forks its ranks in turn (``--run-path --start-method fork``) and each runs this
file. So agent, rendezvous, ranks and their deaths are those of a real run, and only the
imports, nearly all of the time of a short one, are saved.
"""

import ctypes
import json
import os
import sys
import traceback
from typing import Never

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 1, 24, 1
LIBC = ctypes.CDLL(None)


def obey_permissions() -> Never:
    """Start anew, so that a folder without write permission refuses root as well."""
    LIBC.prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
    os.execv(sys.executable, [sys.executable, __file__, "serve"])


def serve() -> None:
    """Import all, then fork and wait, as asked."""
    import datasets  # noqa: F401
    import torch.distributed.run  # noqa: F401
    import transformers  # noqa: F401

    import recipes.qwen2vl_tiny  # noqa: F401

    codes: dict[int, int | None] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if isinstance(question, list):
            answer = os.fork()
            if not answer:
                be_torchrun(*question)
            codes[answer] = None
        else:
            if codes[question] is None:
                ended, status = os.waitpid(question, os.WNOHANG)
                if ended:
                    codes[question] = os.waitstatus_to_exitcode(status)
            answer = codes[question]
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


def be_torchrun(log: str, ranks: str, *arguments: str) -> Never:
    """Be a torchrun from here on."""
    from torch.distributed.run import main

    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, target in ((null, 0), (file, 1), (file, 2)):
        os.dup2(descriptor, target)
    flags = ["--standalone", "--nproc-per-node", ranks]
    flags += ["--run-path", "--start-method", "fork"]
    code = 1
    try:
        main([*flags, __file__, *arguments])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def be_a_rank() -> None:
    """Run the recipe. Forked ranks would die with torchrun; real ones do not."""
    from recipes.qwen2vl_tiny import TINY
    from recipes.train import run_recipe

    LIBC.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    run_recipe(TINY)


if __name__ == "__main__":
    if "RANK" in os.environ:
        be_a_rank()
    elif "serve" in sys.argv:
        serve()
    else:
        obey_permissions()
