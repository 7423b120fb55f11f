"""Guided velocities against recorded calls, cache contents included, and what may be left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from magi_core.config import Sampling
from magi_core.denoise.guidance import Window, dispatch, guidance_weights
from magi_core.denoise.schedule import step_embedding
from magi_core.golden import Case, Golden, compare
from magi_core.model import KVCache, MagiDiT
from magi_core.text.assembly import null_caption
from magi_core.text.caption import Caption


def captions(y: Tensor, lengths: Tensor) -> tuple[Caption, ...]:
    """y [D, 1, L, C] -> D captions of their own length."""
    return tuple(Caption(row[:n], torch.ones(n)) for row, n in zip(y[:, 0], lengths.tolist(), strict=True))


def test_dispatch_equals_the_recorded_calls(golden: Golden, models: Callable[[str], MagiDiT]) -> None:
    assert golden.family("dispatcher")
    for case in golden.family("dispatcher"):
        check(case, golden, models)


def check(case: Case, golden: Golden, models: Callable[[str], MagiDiT]) -> None:
    config = golden.config(case.config)
    model = models(case.config)
    steps = case.meta["num_steps"]
    cache = KVCache()
    for i, call in enumerate(case.meta["calls"]):
        x = case.inputs[f"c{i}.x"]
        tokens = 6 * (x.shape[3] // 2) * (x.shape[4] // 2)
        near, extra = bool(call.get("near")), bool(call.get("extra"))
        touched = bool(call.get("extract")) or extra or call["slice_point"] > 0  # when the reference writes (spec 6)
        window = Window(
            x=x,
            times=tuple(case.inputs[f"c{i}.t"].tolist()),
            text=captions(case.inputs[f"c{i}.y_text"], case.inputs[f"c{i}.mask_lens_text"]),
            null=null_caption(model.null_caption),
            first_chunk=call["slice_point"],
            kv_chunks=tuple((a // tokens, b // tokens) for a, b in case.inputs[f"c{i}.kv_range"].tolist()),
            extra=extra,
            near_clean=near,
            step_embedding=step_embedding(steps, call.get("interval", 1)) if config.dit.distill else None,
            write_chunks=call["n"] if touched else 0,
        )
        computed = {f"c{i}.out": dispatch(model, replace(config.sampling, num_steps=steps), window, cache)}
        computed |= {f"c{i}.cache_layer0_chunk{k}": cache.read(0, k, k + 1)[0] for k in cache.chunks}
        for output, recorded in case.outputs.items():
            if output.startswith(f"c{i}."):
                error, allowed = compare(computed[output], recorded), case.tolerance[output]
                assert error[0] <= allowed.max_abs and error[1] <= allowed.rel_rms, (case.id, output, error)


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
