# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The functions of ``fused_plain`` as one Triton kernel each: every value is read once and written once.

Notable:
- A program does one token: all its channels, or all its heads. Sums are made in float32; what is rounded in between in the plain way (a
  norm's output, an activation) is rounded here too, so float8 values meet the same roundings.
- Rounding to bfloat16 is written out in integers, and float8 is left to torch where Triton interprets: its interpreter cuts off.

Forward only. This module needs the package ``triton``; see ``triton_ranges`` on interpreting.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from magi_core.kernels.fused_plain import FP8, Affine, Quantised

NOTHING, NORM, GELU, GATE = (tl.constexpr(i) for i in range(4))
"""What is done to a row before it is quantised."""


def add_branch(x: Tensor, gate: Tensor, branch: Tensor, norm: Affine) -> Tensor:
    """As the plain one."""
    x, branch, gate = (_dense(tensor) for tensor in (x, branch, gate))
    chunks, tokens, width = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    block = triton.next_power_of_2(width)
    _add_branch_row[(chunks * tokens,)](
        *(x, gate, branch, norm.weight, norm.bias, out, norm.eps, tokens, width),
        *(*x.stride()[:2], gate.stride(0), *branch.stride()[:2]),
        ONE_PLUS=norm.one_plus,
        BLOCK=block,
        num_warps=_warps(block),
    )
    return out


def place(x: Tensor, norm: Affine, stay: Tensor, turn: Tensor, bands: int) -> Tensor:
    """As the plain one."""
    return _place(x, norm, (_dense(stay), _dense(turn)), 3 * bands)


def norm_heads(x: Tensor, norm: Affine) -> Tensor:
    """As the plain one."""
    return _place(x, norm, None, 0)


def quantise(x: Tensor, divisor: Tensor | None) -> Quantised:
    """As the plain one."""
    return _quantise(x, divisor, NOTHING, x.shape[-1], None)


def quantise_normed(x: Tensor, norm: Affine, divisors: Sequence[Tensor | None]) -> list[Quantised]:
    """As the plain one; a launch for every divisor."""
    return [_quantise(x, divisor, NORM, x.shape[-1], norm) for divisor in divisors]


def quantise_activated(wide: Tensor, gated: bool, divisor: Tensor | None) -> Quantised:
    """As the plain one."""
    return _quantise(wide, divisor, GATE if gated else GELU, wide.shape[-1] // (1 + gated), None)


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on the CPU."""
    return not isinstance(_quantise_row, triton.JITFunction)


def _place(x: Tensor, norm: Affine, rotation: tuple[Tensor, Tensor] | None, half: int) -> Tensor:
    x = _dense(x)
    chunks, tokens, heads, d = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    block, block_d = triton.next_power_of_2(heads), triton.next_power_of_2(d)
    steps = [side for factor in rotation for side in factor.stride()[:2]] if rotation else [0] * 4
    _place_row[(chunks * tokens,)](
        *(x, norm.weight, norm.bias, *(rotation or (None, None)), out, norm.eps, tokens),
        *(len(rotation[0]) if rotation else 1, *x.stride()[:3], *steps),
        ONE_PLUS=norm.one_plus,
        TURNED=rotation is not None,
        HEADS=heads,
        D=d,
        HALF=half,
        BLOCK=block,
        BLOCK_D=block_d,
        num_warps=_warps(block * block_d),
    )
    return out


def _quantise(x: Tensor, divisor: Tensor | None, before: tl.constexpr, width: int, norm: Affine | None) -> Quantised:
    rows = _dense(x if x.ndim == 3 else x.reshape(1, -1, x.shape[-1]))
    out = torch.empty(*x.shape[:-1], width, dtype=torch.float32 if interpreted() else FP8, device=x.device)
    scale = torch.empty(*x.shape[:-1], 1, device=x.device) if divisor is None else None
    block = triton.next_power_of_2(width)
    _quantise_row[(rows.shape[0] * rows.shape[1],)](
        *(rows, divisor, scale, norm and norm.weight, norm and norm.bias, out, norm.eps if norm else 0.0),
        *(rows.shape[1], width, *rows.stride()[:2]),
        BEFORE=before,
        BY_ROW=divisor is None,
        ONE_DIVISOR=divisor is not None and divisor.numel() == 1,
        ONE_PLUS=bool(norm and norm.one_plus),
        BLOCK=block,
        num_warps=_warps(block),
    )
    return out.to(FP8), scale


def _dense(x: Tensor) -> Tensor:
    """The same values, those of the last dimension side by side in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _warps(values: int) -> int:
    return 4 if values <= 4096 else 8 if values <= 8192 else 16


@triton.jit
def _rounded(x, DTYPE: tl.constexpr):
    """float32 x, rounded to ``DTYPE`` and back: to nearest, ties to even."""
    if tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return bits.to(tl.float32, bitcast=True)
    else:
        return x.to(DTYPE).to(tl.float32)


@triton.jit
def _layer_norm(x, seen, weight, bias, width, eps, AXIS: tl.constexpr, ONE_PLUS: tl.constexpr):
    """Of float32 x, whose places that are not ``seen`` hold 0."""
    mean = tl.expand_dims(tl.sum(x, AXIS), AXIS) / width
    centred = tl.where(seen, x - mean, 0.0)
    variance = tl.expand_dims(tl.sum(centred * centred, AXIS), AXIS) / width
    gain = weight + 1.0 if ONE_PLUS else weight
    return centred * tl.rsqrt(variance + eps) * gain + bias


@triton.jit
def _add_branch_row(
    x_at, gate_at, branch_at, weight_at, bias_at, out_at, eps, tokens, width,
    x_chunk, x_token, gate_chunk, branch_chunk, branch_token, ONE_PLUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    chunk, token = row // tokens, row % tokens
    i = tl.arange(0, BLOCK)
    seen = i < width
    x = tl.load(x_at + chunk * x_chunk + token * x_token + i, mask=seen, other=0.0).to(tl.float32)
    gate = tl.load(gate_at + chunk * gate_chunk + i, mask=seen, other=0.0).to(tl.float32)
    branch = tl.load(branch_at + chunk * branch_chunk + token * branch_token + i, mask=seen, other=0.0).to(tl.float32)
    weight = tl.load(weight_at + i, mask=seen, other=0.0).to(tl.float32)
    bias = tl.load(bias_at + i, mask=seen, other=0.0).to(tl.float32)
    out = x + _layer_norm(gate * branch, seen, weight, bias, width, eps, 0, ONE_PLUS)
    kind: tl.constexpr = out_at.dtype.element_ty
    tl.store(out_at + row * width + i, _rounded(out, kind).to(kind), mask=seen)


@triton.jit
def _place_row(
    x_at, weight_at, bias_at, stay_at, turn_at, out_at, eps, tokens, places,
    x_chunk, x_token, x_head, stay_chunk, stay_token, turn_chunk, turn_token,
    ONE_PLUS: tl.constexpr, TURNED: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    chunk, token = row // tokens, row % tokens
    head, i = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    inside = i < D
    seen = (head < HEADS) & inside
    heads_at = x_at + chunk * x_chunk + token * x_token + head * x_head
    x = tl.load(heads_at + i, mask=seen, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1)[:, None] / D
    centred = tl.where(seen, x - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1)[:, None] / D + eps)
    out = _normed(centred * rstd, weight_at + i, bias_at + i, inside, ONE_PLUS)
    if TURNED:
        partner = tl.where(i < HALF, i + HALF, tl.where(i < 2 * HALF, i - HALF, i))
        other = tl.load(heads_at + partner, mask=seen, other=0.0).to(tl.float32)
        normed_other = _normed((other - mean) * rstd, weight_at + partner, bias_at + partner, inside, ONE_PLUS)
        stay = tl.load(stay_at + chunk % places * stay_chunk + token * stay_token + i, mask=inside, other=0.0)
        turn = tl.load(turn_at + chunk % places * turn_chunk + token * turn_token + i, mask=inside, other=0.0)
        out = out * stay + normed_other * turn
    kind: tl.constexpr = out_at.dtype.element_ty
    tl.store(out_at + row * (HEADS * D) + head * D + i, _rounded(out, kind).to(kind), mask=seen)


@triton.jit
def _normed(x, weight_at, bias_at, inside, ONE_PLUS: tl.constexpr):
    """x * gain + bias; a gain that is 1 + its weight is rounded as the weight is."""
    gain = tl.load(weight_at, mask=inside, other=0.0).to(tl.float32)
    if ONE_PLUS:
        gain = _rounded(gain + 1.0, weight_at.dtype.element_ty)
    return x * gain + tl.load(bias_at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _quantise_row(
    x_at, divisor_at, scale_at, weight_at, bias_at, out_at, eps, tokens, width, x_chunk, x_token,
    BEFORE: tl.constexpr, BY_ROW: tl.constexpr, ONE_DIVISOR: tl.constexpr, ONE_PLUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    seen = i < width
    kind: tl.constexpr = x_at.dtype.element_ty
    row_at = x_at + row // tokens * x_chunk + row % tokens * x_token
    x = tl.load(row_at + i, mask=seen, other=0.0).to(tl.float32)
    if BEFORE == NORM:
        weight = tl.load(weight_at + i, mask=seen, other=0.0).to(tl.float32)
        bias = tl.load(bias_at + i, mask=seen, other=0.0).to(tl.float32)
        x = _rounded(_layer_norm(x, seen, weight, bias, width, eps, 0, ONE_PLUS), weight_at.dtype.element_ty)
    elif BEFORE == GELU:
        x = _rounded(0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476)), kind)
    elif BEFORE == GATE:
        value = tl.load(row_at + width + i, mask=seen, other=0.0).to(tl.float32)
        x = _rounded(_rounded(x / (1.0 + tl.exp(-x)), kind) * value, kind)
    if BY_ROW:
        scale = tl.maximum(tl.div_rn(tl.max(tl.where(seen, tl.abs(x), 0.0), 0), 448.0), 1e-12)
        tl.store(scale_at + row, scale)
        x = tl.div_rn(x, tl.zeros([BLOCK], dtype=tl.float32) + scale)
    else:
        divisor = tl.load(divisor_at + (i * 0 if ONE_DIVISOR else i), mask=seen, other=1.0).to(tl.float32)
        x = _rounded(tl.minimum(tl.maximum(tl.div_rn(x, divisor), -448.0), 448.0), tl.bfloat16)
    tl.store(out_at + row * width + i, x.to(out_at.dtype.element_ty), mask=seen)
