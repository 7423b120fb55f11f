"""The whole transformer against recorded passes, and its behaviour in training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magi_core.checkpoint.load import load_dit
from magi_core.config import DiTConfig
from magi_core.golden import Case, Golden, compare
from magi_core.model import MagiDiT

TEXT_LENGTH = 800
FORWARD = [
    "a_1chunk",
    "a_1chunk_null",
    "a_4chunk",
    "b_1chunk",
    "b_3chunk",
    "a_distill_2chunk_s16",
    "a_distill_2chunk_s12_i1",
]
FORWARD += ["a_distill_2chunk_s12_i2", "b_distill_2chunk_s16", "c_2chunk", "a_bf16_2chunk", "c_bf16_2chunk"]


def load(golden: Golden, name: str) -> MagiDiT:
    return load_dit(golden.weights_path(name), golden.config(name).dit).requires_grad_(False)


def captions(y: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """y [D, 1, L, C] padded to [D, 800, C], and the mask of the leading tokens."""
    padded = torch.nn.functional.pad(y[:, 0], (0, 0, 0, TEXT_LENGTH - y.shape[2]))
    return padded, (torch.arange(TEXT_LENGTH) < torch.tensor(lengths)[:, None]).long()


def step_embedding(case: Case, config: DiTConfig) -> float | None:
    if not config.distill:
        return None
    steps = case.meta["num_steps"]
    return 4 / case.meta["distill_interval"] * 2 if steps == 12 else steps / 4 * 2


def run_case(model: MagiDiT, case: Case) -> Tensor:
    given = case.inputs
    y, mask = captions(given["y"], given["xattn_mask_lens"].tolist())
    chunks = given["t"].shape[1]
    return model(
        given["x"],
        given["t"],
        y,
        mask,
        dropped=case.meta["caption_dropout_mask"][0],
        chunk_index=range(case.meta["slice_point"], case.meta["slice_point"] + chunks),
        kv_range=kv_tokens(given["kv_range"], given["x"], chunks),
        step_embedding=step_embedding(case, model.config),
    )


def kv_tokens(kv_range: Tensor, x: Tensor, chunks: int) -> list[tuple[int, int]]:
    del x, chunks
    return [(int(start), int(end)) for start, end in kv_range]


def assert_close(computed: Tensor, case: Case, name: str) -> None:
    max_abs, rel_rms = compare(computed, case.outputs[name])
    limit = case.tolerance[name]
    print(
        f"{case.id} {name}: max_abs {max_abs:.2e} of {limit.max_abs:.0e}, rel_rms {rel_rms:.2e} of {limit.rel_rms:.0e}"
    )
    assert max_abs <= limit.max_abs
    assert rel_rms <= limit.rel_rms


@pytest.mark.parametrize("name", FORWARD)
def test_forward_equals_recorded(golden: Golden, name: str) -> None:
    case = golden.case(f"dit_forward/{name}")
    assert_close(run_case(load(golden, case.config), case), case, "velocity")
