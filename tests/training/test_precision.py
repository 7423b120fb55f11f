"""Training multiplies in bfloat16 where that is fast, and in what it is told where it is told."""

from __future__ import annotations

import pytest
import torch

from magi_core.training.precision import autocast

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "wanted", "product"),
    [
        ("AVX2", None, torch.float32),
        ("DEFAULT", None, torch.float32),
        ("AVX512", None, torch.bfloat16),
        ("AVX2", True, torch.bfloat16),
        ("AVX512", False, torch.float32),
    ],
)
def test_products_are_in_bfloat16_where_the_processor_is_fast_at_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, wanted: bool | None, product: torch.dtype
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    layer = torch.nn.Linear(4, 4)
    with autocast(CPU, wanted=wanted):
        assert layer(torch.ones(1, 4)).dtype == product


def test_within_another_autocast_it_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    with torch.autocast("cpu", torch.bfloat16), autocast(CPU):
        assert torch.nn.Linear(4, 4)(torch.ones(1, 4)).dtype == torch.float32
