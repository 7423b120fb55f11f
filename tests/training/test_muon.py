"""Muon in float32 is torch's to the rounding of bfloat16, and makes matrices orthogonal."""

from __future__ import annotations

import pytest
import torch

from magi_core.training.muon import Muon, orthogonal

SHAPES = ((6, 4), (4, 6), (6, 4), (5, 5))


def trained(kind: type[torch.optim.Optimizer]) -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
    """Matrices after three steps with the same gradients, and what made them."""
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]
    optimizer = kind(matrices, lr=0.1, weight_decay=0.2)  # type: ignore[call-arg]
    for _ in range(3):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        optimizer.step()
    return [matrix.detach() for matrix in matrices], optimizer


def test_it_is_that_of_torch_and_a_state_of_either_goes_on_with_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    ours, mine = trained(Muon)
    theirs, torchs = trained(torch.optim.Muon)
    for got, wanted in zip(ours, theirs, strict=True):
        assert (got - wanted).abs().max() < 0.01, "an update is 0.1 long in every direction"
    for got, wanted in zip(mine.param_groups[0]["params"], torchs.param_groups[0]["params"], strict=True):
        kept, expected = mine.state[got], torchs.state[wanted]
        assert kept.keys() == expected.keys() and torch.equal(kept["momentum_buffer"], expected["momentum_buffer"])


def test_what_has_no_gradient_stays_as_it_is() -> None:
    matrix = torch.ones(3, 2, requires_grad=True)
    Muon([matrix], lr=1.0).step()
    assert torch.equal(matrix, torch.ones(3, 2))


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_singular_values_come_to_about_one(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    for shape in ((3, 8, 20), (3, 20, 8)):
        values = torch.linalg.svdvals(
            orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(1))).float()
        )
        assert bool(((values > 0.6) & (values < 1.3)).all())
