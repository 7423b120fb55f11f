"""The Triton kernels compile to machine code for GPUs, and tiles of attention fit their shared memory (started by test_triton.py)."""

from __future__ import annotations

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from magi_core.kernels.fused_triton import _add_branch_row, _place_row, _quantise_row
from magi_core.kernels.triton_int8 import _quantise_row as _quantise_int8_row
from magi_core.kernels.triton_ranges import LARGE, SMALL, Tile, _attend_tile, interpreted

SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
"""Bytes of shared memory that a block may have, by compute capability (CUDA programming guide, technical specifications)."""
POINTERS = {"q_at": "*bf16", "k_at": "*bf16", "v_at": "*bf16", "out_at": "*bf16", "lse_at": "*fp32"}
OTHERS = {"tiles": "*i32", "parts": "*i32", "scale": "fp32"}


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("capability", "tile"), [(80, SMALL), (89, LARGE), (90, LARGE)])
def test_the_kernel_compiles(capability: int, tile: Tile, int8: bool) -> None:
    assert not interpreted()
    scales = dict.fromkeys(["q_scale_at", "k_scale_at"], None)
    constants = dict(SHARE=3, D=128, BLOCK_D=128, ROWS=tile.rows, KEYS=tile.keys, UPCAST=False, INT8=int8)
    constants |= {} if int8 else scales
    pointers = POINTERS | (dict.fromkeys(scales, "*fp32") | {"q_at": "*i8", "k_at": "*i8"} if int8 else {})
    types = {name: "i32" for name in _attend_tile.arg_names} | pointers | OTHERS | dict.fromkeys(constants, "constexpr")
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(types) if types[name] not in ("constexpr", "fp32")
    }
    source = ASTSource(_attend_tile, types, {(list(types).index(n),): value for n, value in constants.items()}, aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.metadata.shared <= SHARED[capability]
    products = "wgmma.mma_async" if capability == 90 else "mma.sync"  # tensor cores are used
    found = {line.split()[0] for line in compiled.asm["ptx"].splitlines() if line.strip().startswith(products)}
    assert any("bf16" in name for name in found) and int8 == any("s8.s8" in name for name in found), found


NORM = {"weight_at": "*fp32", "bias_at": "*fp32", "eps": "fp32"}
ROWS = dict(x_at="*bf16", **NORM)
FUSED = {
    "add_branch": (
        _add_branch_row,
        ROWS | {"gate_at": "*bf16", "branch_at": "*fp32", "out_at": "*bf16"},
        dict(ONE_PLUS=True, BLOCK=4096),
    ),
    "int8": (
        _quantise_int8_row,
        dict(x_at="*bf16", mean_at="*fp32", out_at="*i8", scale_at="*fp32", share_at="*fp32"),
        dict(SUBTRACT=False, HEADS=24, SHARE=3, D=128, BLOCK=32, BLOCK_D=128),
    ),
    "place": (
        _place_row,
        ROWS | {"stay_at": "*fp32", "turn_at": "*fp32", "out_at": "*bf16"},
        dict(ONE_PLUS=True, TURNED=True, HEADS=8, D=128, HALF=63, BLOCK=8, BLOCK_D=128),
    ),
    "norm_heads": (
        _place_row,
        dict(x_at="*bf16", weight_at="*bf16", bias_at="*bf16", eps="fp32", out_at="*bf16"),
        dict(ONE_PLUS=True, TURNED=False, stay_at=None, turn_at=None, HEADS=24, D=128, HALF=0, BLOCK=32, BLOCK_D=128),
    ),
} | {
    f"quantise, {before}, {rows}": (
        _quantise_row,
        ROWS | {"divisor_at": "*fp32", "scale_at": "*fp32", "out_at": "*fp8e4nv"},
        dict(BEFORE=before, BY_ROW=rows, ONE_DIVISOR=False, ONE_PLUS=False, BLOCK=2048),
    )
    for before in range(4)
    for rows in (False, True)
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_kernels_compile(name: str) -> None:
    kernel, known, constants = FUSED[name]
    types = {name: "i32" for name in kernel.arg_names} | known | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, types, {(list(types).index(n),): value for n, value in constants.items()}, {})
    capability = 89 if name.startswith("quantise") else 80  # the oldest that they are chosen for
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    assert compiled.metadata.shared <= SHARED[capability]
    assert "e4m3" in compiled.asm["ptx"] or capability == 80  # float8 is converted to by the hardware
