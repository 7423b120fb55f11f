"""Range attention against the formula, for any ranges."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magi_core.kernels import AttnRange, attend
from magi_core.kernels.reference import attend_reference

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@st.composite
def problems(draw: st.DrawFn) -> tuple[tuple[int, int, int, int, int], list[AttnRange]]:
    """Sizes (Lq, Lk, Hq, Hk, d) and ranges: disjoint in q, with gaps; anything in k."""
    q_rows, k_rows = draw(st.integers(1, 24)), draw(st.integers(0, 24))
    groups, share = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    size = (q_rows, k_rows, groups * share, groups, draw(st.sampled_from([1, 8, 24])))
    cuts = sorted(draw(st.lists(st.integers(0, q_rows), max_size=6)))
    ranges = []
    for start, end in pairwise(cuts):
        if draw(st.booleans()):
            k_start, k_end = sorted((draw(st.integers(0, k_rows)), draw(st.integers(0, k_rows))))
            ranges.append(AttnRange(start, end, k_start, k_end))
    return size, draw(st.permutations(ranges))


def tensors(size: tuple[int, int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    q_rows, k_rows, q_heads, k_heads, d = size
    generator = torch.Generator().manual_seed(0)
    shapes = ((q_rows, q_heads, d), (k_rows, k_heads, d), (k_rows, k_heads, d))
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


@settings(deadline=None, max_examples=150)
@given(problem=problems(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_attend_is_the_formula(
    problem: tuple[tuple[int, int, int, int, int], list[AttnRange]], dtype: torch.dtype
) -> None:
    size, ranges = problem
    q, k, v = tensors(size, dtype)
    out = attend(q, k, v, ranges)
    assert out.dtype == dtype
    torch.testing.assert_close(out, attend_reference(q, k, v, ranges), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_gradients_are_those_of_the_formula() -> None:
    size = (12, 10, 4, 2, 8)
    ranges = [AttnRange(0, 3, 0, 4), AttnRange(3, 6, 2, 6), AttnRange(8, 12, 0, 10)]
    gradients = []
    for implementation in (attend, attend_reference):
        inputs = [x.requires_grad_() for x in tensors(size, torch.float32)]
        implementation(*inputs, ranges).square().sum().backward()
        gradients.append([x.grad for x in inputs])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_keys_and_values_may_be_views() -> None:
    q, k, v = tensors((6, 9, 4, 2, 8), torch.float32)
    packed = torch.cat([k, v], dim=-1)
    ranges = [AttnRange(0, 3, 0, 6), AttnRange(3, 6, 3, 9)]
    torch.testing.assert_close(attend(q, packed[..., :8], packed[..., 8:], ranges), attend(q, k, v, ranges))


def test_shared_query_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="share query rows"):
        attend(*tensors((6, 6, 1, 1, 8), torch.float32), [AttnRange(0, 4, 0, 6), AttnRange(3, 6, 0, 6)])
