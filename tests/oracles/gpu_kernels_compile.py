"""Every kernel of a GPU becomes machine code, for three kinds of GPU and all types.

``test_gpu_kernels.py`` runs this. Triton brings an assembler, so no GPU is needed;
nothing is run.
"""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastslow import _gpu_attention, _gpu_bags, _gpu_block_masks
from fastslow.qwen2_vl.tower import MOST_CHANNELS

AMPERE, HOPPER, BLACKWELL = 80, 90, 100
SHARED_BYTES = {AMPERE: 163 * 1024, HOPPER: 227 * 1024, BLACKWELL: 227 * 1024}
"""Shared memory that a kernel may have, by NVIDIA's programming guide."""


def check(kernel, arguments, constants, capability, **options) -> str:
    """Compile a kernel; give its code for the assembler."""
    constant = dict.fromkeys(constants, "constexpr")
    aligned = [["tt.divisibility", 16]]  # as torch's memory is
    source = ASTSource(
        fn=kernel,
        signature=arguments | constant,
        constexprs=constants,
        attrs={
            (kernel.arg_names.index(name),): aligned
            for name, kind in arguments.items()
            if kind.startswith("*")
        },
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= SHARED_BYTES[capability]
    return compiled.asm["ptx"]


def check_bags(capability: int) -> None:
    for kind in ("bf16", "fp16", "fp32", "fp64"):
        arguments = {
            "rows": f"*{kind}",
            "entries": "*i64",
            "starts": "*i64",
            "weights": "*fp64",
            "sums": f"*{kind}",
            **dict.fromkeys(("num_entries", "num_bags", "channels"), "i32"),
        }
        block = _gpu_bags.LONGEST_BLOCK
        constants = {"is_wide": kind == "fp64", "block": block}
        check(_gpu_bags._sum_bags, arguments, constants, capability, num_warps=8)


def check_tables(capability: int) -> None:
    arguments = {
        **dict.fromkeys(("start", "stop", "counts", "lists"), "*i32"),
        **dict.fromkeys(("tokens", "block_size"), "i32"),
    }
    constants = {"lanes": 128, "columns": _gpu_block_masks.COLUMNS}
    check(_gpu_block_masks._write_tables, arguments, constants, capability)


def check_attention(capability: int) -> None:
    usual = [("bf16", channels) for channels in (16, 64, 72, 80, MOST_CHANNELS)]
    for kind, channels in (*usual, ("fp16", MOST_CHANNELS)):
        arguments = {
            **dict.fromkeys(("query", "key", "value", "attended"), f"*{kind}"),
            "cu_seqlens": "*i32",
            "scale": "fp32",
            **dict.fromkeys((*_gpu_attention.STRIDES, "tiles"), "i32"),
        }
        constants = {
            "heads": 16,
            "channels": channels,
            "step": _gpu_attention.ALIGNED,
            **_gpu_attention.cut(channels),
            "num_queries": _gpu_attention.QUERIES,
            "num_keys": _gpu_attention.KEYS,
        }
        options = {"num_warps": 4, "num_stages": 3}
        code = check(
            _gpu_attention._attend, arguments, constants, capability, **options
        )
        assert ("wgmma" in code) == (capability == HOPPER)
        assert "cp.async" in code


for capability in SHARED_BYTES:
    check_bags(capability)
    check_tables(capability)
    check_attention(capability)
