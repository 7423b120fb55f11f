"""The 8-bit Triton kernel against the formula, in Triton's interpreter (started by test_triton.py)."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magi_core.kernels import AttnRange, attention, attention_lse, backends, merge
from magi_core.kernels.names import TABLE
from magi_core.kernels.reference import attend_lse_reference
from magi_core.kernels.triton_int8 import attend_triton_int8, key_mean
from magi_core.kernels.triton_ranges import Tile
from tests.kernels.problems import Problem, assert_same, problems, tensors

CLOSE = 0.05
"""Of standard normal inputs. A row's values are rounded to a 254th of its range, so a score of deviation 1 is about 0.01 off."""


def rounded(x: Tensor) -> Tensor:
    """What the rows of x in int8 stand for."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return (x / scale + 0.5).floor() * scale


@settings(deadline=None, max_examples=40)
@given(
    problem=problems(rows=70, groups=2, dims=(16, 24, 64, 128)),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    tile=st.sampled_from([Tile(16, 16, 4, 1), Tile(64, 32, 4, 1)]),
)
def test_the_kernel_is_near_the_formula(problem: Problem, dtype: torch.dtype, tile: Tile) -> None:
    q, k, v = tensors(problem, dtype)
    ours = attend_triton_int8(q, k, v, problem.ranges, tile)
    assert_same(ours, attend_lse_reference(q, k, v, problem.ranges), CLOSE)


@settings(deadline=None, max_examples=20)
@given(problem=problems(rows=40, groups=2, dims=(16, 24, 64)))
def test_the_kernel_is_the_formula_of_the_rounded_rows(problem: Problem) -> None:
    q, k, v = tensors(problem)
    mean = key_mean(k, problem.ranges)
    out, lse = attend_triton_int8(q, k, v, problem.ranges)
    expected, sums = attend_lse_reference(rounded(q), rounded(k - mean), v, problem.ranges)
    share = torch.einsum("lgsd,gd->lgs", q.unflatten(1, (problem.k_heads, -1)), mean).flatten(1) / problem.d**0.5
    assert_same((out, lse), (expected, sums + share), 1e-5)


RANGES = [AttnRange(0, 20, 0, 33), AttnRange(20, 29, 7, 40)]


def test_keys_around_a_large_mean() -> None:
    """Without taking the mean off, the scores would be wrong by more than they differ."""
    q, k, v = tensors(Problem(29, 40, 6, 2, 64, RANGES))
    k += 30 * torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(1))
    out, lse = attend_triton_int8(q, k, v, RANGES)
    expected, sums = attend_lse_reference(q, k, v, RANGES)
    torch.testing.assert_close(out, expected, atol=CLOSE, rtol=CLOSE)
    torch.testing.assert_close(lse, sums, atol=CLOSE, rtol=1e-3)


def test_rows_of_any_size_views_zeros_and_what_no_range_has() -> None:
    q, k, v = tensors(Problem(30, 48, 24, 8, 64, RANGES))
    q[:10] *= 1e-3
    q[3] = k[5] = 0
    k[40:] = v[40:] = torch.nan
    packed = torch.cat([k, v], dim=-1)
    ours = attend_triton_int8(q, packed[..., :64], packed[..., 64:], RANGES)
    assert_same(ours, attend_lse_reference(q, k[:40], v[:40], RANGES), CLOSE)
    assert not ours[0][29].any() and ours[1][29].eq(-torch.inf).all()


def test_parts_merge_to_the_whole() -> None:
    q, k, v = tensors(Problem(20, 40, 4, 2, 32, []))
    parts = [attend_triton_int8(q, k, v, [AttnRange(0, 20, *keys)]) for keys in ((0, 13), (13, 40))]
    expected = attend_lse_reference(q, k, v, [AttnRange(0, 20, 0, 40)])
    assert_same(merge(*parts[0], *parts[1]), expected, CLOSE)


def test_it_is_a_lossy_name() -> None:
    report = next(r for r in backends("cpu") if r.name == "triton_int8")
    assert report.available and report.lossy and TABLE["triton_int8"].lse
    ranges = [AttnRange(0, 4, 0, 5)]
    q, k, v = tensors(Problem(6, 5, 2, 1, 16, ranges), torch.bfloat16)
    expected = attend_lse_reference(q, k, v, ranges)
    assert_same(attention_lse("triton_int8", "cpu")(q, k, v, ranges), expected, CLOSE)
    exact = attention("triton", "cpu")(q, k, v, ranges)
    assert not torch.equal(attention("triton_int8", "cpu")(q, k, v, ranges), exact)
