"""Whole generations against recorded ones: every chunk, and for one of them every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_core.config import Sampling
from magi_core.denoise import ChunkCondition, Session, session
from magi_core.golden import Case, Golden, compare
from magi_core.model import MagiDiT
from magi_core.text.assembly import chunk_caption, null_caption
from magi_core.text.caption import Caption
from magi_core.text.special_tokens import PromptTokens, SpecialTokens

SWITCHES = {
    "PAD_HQ": "high_quality",
    "PAD_STATIC": "static_first_frames",
    "PAD_DYNAMIC": "dynamic_first_frames",
    "PAD_BORDERNESS": "borderness",
    "PAD_THREE_D_MODEL": "three_d_model",
    "PAD_TWO_D_ANIME": "two_d_anime",
    "PAD_DURATION": "duration",
}


def settings(case: Case, golden: Golden) -> Sampling:
    given = {**case.meta["runtime"], **case.meta["engine"]}
    names = {name: given[name] for name in given if hasattr(golden.config(case.config).sampling, name)}
    return replace(
        golden.config(case.config).sampling, **names | {"noise2clean_kvrange": tuple(names["noise2clean_kvrange"])}
    )


def recorded_session(case: Case, golden: Golden, model: MagiDiT) -> Session:
    env = case.meta["env"]
    tokens = SpecialTokens.load(golden.folder / "special_tokens.npz")
    null = null_caption(model.null_caption, tokens if env.get("NEG_PROMPT") else None)
    text = golden.tensors("text.safetensors")["caption_embs"][0, 0]
    prompt = Caption(text, torch.arange(len(text)) < case.meta["text_tokens"])
    switches = PromptTokens(**{field: name in env for name, field in SWITCHES.items()})
    prefix = case.inputs.get("prefix_video")
    noise: Tensor = case.inputs["noise"]
    made = Session(
        model,
        settings(case, golden),
        height=noise.shape[3],
        width=noise.shape[4],
        seed=0,
        null=null,
        prefix=prefix,
        noise=noise,
    )
    count = noise.shape[2] // 6 - (0 if prefix is None else prefix.shape[2] // 6)
    made.add([ChunkCondition(chunk_caption(prompt, null, count - i, tokens, switches)) for i in range(count)])
    return made


def test_generations_equal_the_recorded_ones(
    golden: Golden, models: Callable[[str], MagiDiT], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert golden.family("loops")
    for case in golden.family("loops"):
        computed: dict[str, Tensor] = {}

        def recording(model: MagiDiT, sampling: Sampling, window: Any, cache: Any) -> Tensor:
            velocity = plain(model, sampling, window, cache)
            step = len(computed) // 2
            computed.update({f"step{step}.x": window.x, f"step{step}.velocity": velocity})
            return velocity

        plain = session.dispatch
        with monkeypatch.context() as patch:
            patch.setattr(session, "dispatch", recording)
            chunks = recorded_session(case, golden, models(case.config)).run()
        computed |= {f"chunk{i}": chunk.latents for i, chunk in enumerate(chunks)}
        assert len(chunks) == len(case.meta["returned_chunk_latent_frames"])
        for name, recorded in case.outputs.items():
            error, allowed = compare(computed[name], recorded), case.tolerance[name]
            assert error[0] <= allowed.max_abs and error[1] <= allowed.rel_rms, (case.id, name, error)
