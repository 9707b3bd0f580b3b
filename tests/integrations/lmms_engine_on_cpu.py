"""The launcher of a run, on a machine without CUDA.

lmms-engine asks for CUDA devices by name, whatever ``use_cpu`` says. Here the CPU
answers: everything else is the real thing. The same arguments as of the launcher.
"""

import functools
import sys
from typing import Any

import torch
import torch.distributed as dist


def answer_for_cuda() -> None:
    """Let the CPU stand where lmms-engine looks for a CUDA device."""
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]
    torch.cuda.get_device_name = lambda *_: "CPU"
    barrier = dist.barrier  # which takes no device under gloo
    dist.barrier = lambda *_, **__: barrier()

    import lmms_engine.parallel.process_group_manager as pgm

    mesh = pgm.init_device_mesh

    @functools.wraps(mesh)
    def on_cpu(_: str, *shape: Any, **names: Any) -> Any:
        return mesh("cpu", *shape, **names)

    pgm.init_device_mesh = on_cpu


if __name__ == "__main__":
    answer_for_cuda()
    from fastslow.integrations.lmms_engine.__main__ import main

    main(sys.argv[1:])
