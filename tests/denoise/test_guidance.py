"""Guided velocities against recorded calls, cache contents included, and what may be left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from magi_core.config import Sampling
from magi_core.denoise.guidance import Window, dispatch, guidance_weights
from magi_core.golden import Golden, compare
from magi_core.model import KVCache, MagiDiT
from magi_core.text.assembly import null_caption
from magi_core.text.caption import Caption
from magi_core.verify.sampling import dispatched


def test_the_cache_holds_what_the_recorded_calls_left_in_it(golden: Golden) -> None:
    """The velocities of these calls are compared by ``magi verify``."""
    assert golden.family("dispatcher")
    for case in golden.family("dispatcher"):
        for i, (_, cache) in enumerate(dispatched(golden, case)):
            for name in case.outputs:
                if name.startswith(f"c{i}.cache_layer0_chunk"):
                    chunk = int(name.rpartition("chunk")[2])
                    error, allowed = (
                        compare(cache.read(0, chunk, chunk + 1)[0], case.outputs[name]),
                        case.tolerance[name],
                    )
                    assert error[0] <= allowed.max_abs and error[1] <= allowed.rel_rms, (case.id, name, error)


def test_weights_add_up_and_follow_the_time() -> None:
    weights = guidance_weights(Sampling(), [0.0, 0.0217, 0.05, 0.1000000089, 0.3000000119, 0.99])
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(6))
    assert weights[2].tolist() == [7.5, 7.5, 7.5, 7.5, 0, 0]
    assert weights[0].tolist() == [-0.5, -0.5, -0.5, -0.5, 0, 0]


def test_a_pass_without_weight_is_left_out_and_changes_nothing(tiny: MagiDiT) -> None:
    sampling = Sampling(prev_chunk_scales=(1.5, 1.5, 1.0, 1.0, 1.0), text_scales=(7.5, 1.5, 0.0, 1.0, 1.0))
    null = null_caption(tiny.null_caption)
    text, latents = Caption(torch.randn(5, 4), torch.ones(5)), torch.randn(1, 2, 8, 4, 4)

    def velocity(times: tuple[float, ...]) -> tuple[Tensor, list[tuple[bool, int]]]:
        passes: list[tuple[bool, int]] = []

        def counted(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
            passes.append((options["dropped"], len(x)))
            return tiny(x, *arguments, **options)

        counted.config = tiny.config  # type: ignore[attr-defined]
        x = latents[:, :, : 2 * len(times)]
        kv = tuple((0, i + 1) for i in range(len(times)))
        window = Window(x, times, (text,) * len(times), null, 0, kv)
        return dispatch(counted, sampling, window, KVCache()), passes  # type: ignore[arg-type]

    assert velocity((0.01,))[1] == [(False, 1), (True, 1), (True, 1)]
    assert velocity((0.05,))[1] == [(False, 1), (True, 1)]  # p = s: the context pass has no weight
    assert velocity((0.2,))[1] == [(True, 1)]  # only context
    assert velocity((0.5,))[1] == [(False, 1)]  # only text
    together, passes = velocity((0.5, 0.2, 0.05, 0.01))
    assert passes == [(False, 1), (True, 1), (True, 2)]  # two chunks alone
    # The leftmost chunk sees only itself, so what its neighbours need must not show in it.
    torch.testing.assert_close(together[:, :, :2], velocity((0.5,))[0])
