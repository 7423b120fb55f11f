"""The fused Triton kernels against the plain functions, in Triton's interpreter (started by test_triton.py)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magi_core.config import DiTConfig
from magi_core.kernels import fused, fused_plain, fused_triton
from magi_core.kernels.fused_plain import FP8, Affine, Quantised
from magi_core.model import MagiDiT
from magi_core.model.rope import Rope

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
WIDTHS = st.sampled_from([16, 24, 96, 200])
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def affine(width: int, dtype: torch.dtype, one_plus: bool) -> Affine:
    weight = some(width, seed=1) * 0.3 + (not one_plus)
    return Affine(weight.to(dtype), some(width, seed=2).to(dtype), 1e-6, one_plus)


def sliced(x: Tensor) -> Tensor:
    """The same values as a tile of more tokens."""
    return torch.cat([x, x], dim=1)[:, : x.shape[1]]


def assert_same(ours: Quantised, plain: Quantised) -> None:
    """Float8 values are equal but for the few that a last bit before the rounding moves to their neighbour; scales are equal."""
    assert ours[0].dtype == FP8 and ours[0].shape == plain[0].shape
    steps = (ours[0].view(torch.uint8).int() - plain[0].view(torch.uint8).int()).abs()
    steps[(ours[0].float() == 0) & (plain[0].float() == 0)] = 0  # zeros of either sign
    assert steps.max() <= 1 and (steps > 0).float().mean() <= 0.01
    assert (ours[1] is None) == (plain[1] is None)
    if ours[1] is not None and plain[1] is not None:
        torch.testing.assert_close(ours[1], plain[1], rtol=2**-7, atol=0)


@settings(deadline=None, max_examples=6)
@given(dtype=DTYPES, wide=DTYPES, width=WIDTHS, one_plus=st.booleans())
def test_branches(dtype: torch.dtype, wide: torch.dtype, width: int, one_plus: bool) -> None:
    x, branch = sliced(some(2, 3, width).to(dtype)), some(2, 3, width, seed=3).to(wide)
    gate = some(2, 1, 2 * width, seed=4).tanh().to(dtype).chunk(2, dim=-1)[1]
    given = x, gate, branch, affine(width, torch.float32, one_plus)
    limit = ROUNDING[dtype]
    torch.testing.assert_close(fused_triton.add_branch(*given), fused_plain.add_branch(*given), rtol=limit, atol=limit)


@settings(deadline=None, max_examples=6)
@given(dtype=DTYPES, heads=st.sampled_from([1, 3, 8]), d=st.sampled_from([12, 32, 64]), items=st.integers(1, 2))
def test_places(dtype: torch.dtype, heads: int, d: int, items: int) -> None:
    bands = d // 2 // 3
    stay, turn = (factor.detach().view(2, -1, 1, d) for factor in Rope(bands, d)([0, 1], 1, 2, 2))
    x = sliced(some(2 * items, 4, heads, d).to(dtype))
    given = x, affine(d, torch.float32, True), stay, turn, bands
    limit = ROUNDING[dtype]
    torch.testing.assert_close(fused_triton.place(*given), fused_plain.place(*given), rtol=limit, atol=limit)


@settings(deadline=None, max_examples=6)
@given(dtype=DTYPES, heads=st.sampled_from([1, 3, 8]), d=st.sampled_from([12, 32, 64]), one_plus=st.booleans())
def test_norms_of_heads(dtype: torch.dtype, heads: int, d: int, one_plus: bool) -> None:
    """In the dtype of the weights, as cross-attention has it; of a slice of wider rows too."""
    x, limit = sliced(some(2, 4, heads, 2 * d).to(dtype))[..., :d], ROUNDING[dtype]
    given = x, affine(d, dtype, one_plus)
    torch.testing.assert_close(fused_triton.norm_heads(*given), fused_plain.norm_heads(*given), rtol=limit, atol=limit)


@settings(deadline=None, max_examples=12)
@given(
    dtype=DTYPES,
    width=WIDTHS,
    divisor=st.sampled_from(["vector", "number", "rows"]),
    size=st.sampled_from([1e-3, 1.0, 300.0]),
)
def test_quantised(dtype: torch.dtype, width: int, divisor: str, size: float) -> None:
    """As it is, normed, and activated in both ways; with values that are clamped, and ones that float8 has few bits for."""
    by = {"vector": some(width, seed=5).abs() + 0.1, "number": torch.tensor([0.37]), "rows": None}[divisor]
    x, wide = sliced((some(2, 3, width) * size).to(dtype)), (some(2, 3, 2 * width) * size).to(dtype)
    norm = affine(width, dtype, False)
    assert_same(fused_triton.quantise(x, by), fused_plain.quantise(x, by))
    assert_same(fused_triton.quantise(x[0], by), fused_plain.quantise(x[0], by))
    for ours, plain in zip(
        fused_triton.quantise_normed(x, norm, [by, None]), fused_plain.quantise_normed(x, norm, [by, None]), strict=True
    ):
        assert_same(ours, plain)
    for values, gated in ((x, False), (wide, True)):
        ours = fused_triton.quantise_activated(values, gated, by)
        assert_same(ours, fused_plain.quantise_activated(values, gated, by))


@pytest.mark.parametrize("quantised", [False, True])
def test_a_model_gives_the_same_velocity(monkeypatch: pytest.MonkeyPatch, quantised: bool) -> None:
    config = DiTConfig(
        num_layers=3,
        hidden_size=48,
        ffn_hidden_size=64,
        num_attention_heads=4,
        num_query_groups=2,
        kv_channels=12,
        in_channels=4,
        out_channels=4,
        caption_channels=8,
        caption_max_length=10,
        params_dtype=torch.float32,
        fp8_quant=quantised,
    )
    torch.manual_seed(0)
    model = MagiDiT(config).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dtype == FP8:
            parameter.copy_(torch.randn(parameter.shape).to(FP8))
        elif name.endswith("input_scale"):
            parameter.fill_(0.05)

    def velocity(kernels: Callable[[torch.device], fused.LayerKernels]) -> Tensor:
        monkeypatch.setattr(fused, "_chosen", kernels)
        with torch.no_grad():
            return model(
                some(1, 4, 2, 4, 4),
                torch.tensor([[0.2, 0.6]]),
                some(2, 10, 8),
                torch.ones(2, 10),
                dropped=False,
                chunk_index=[0, 1],
                kv_range=[(0, 4), (0, 8)],
            )

    plain, ours = velocity(lambda _: fused.PLAIN), velocity(lambda _: fused.fused(True))
    limit = 0.05 if quantised else 1e-4
    torch.testing.assert_close(ours, plain, rtol=limit, atol=limit * float(plain.abs().max()))
