"""The families that denoise: guided calls, whole generations of latents, and the way from pixels to pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from magi_core.config import MagiConfig, Sampling
from magi_core.denoise import ChunkCondition, Session
from magi_core.denoise.guidance import Runner, dispatch
from magi_core.denoise.schedule import step_embedding
from magi_core.denoise.window import Window
from magi_core.golden import Case, Golden
from magi_core.model import KVCache, MagiDiT
from magi_core.text.assembly import chunk_caption, null_caption
from magi_core.text.caption import Caption
from magi_core.vae import Tiling
from magi_core.vae.chunks import decode_frames, encode_frames
from magi_core.verify.recorded import (
    case_config,
    recorded_caption,
    recorded_dit,
    recorded_vae,
    special_tokens,
    switches_from,
)

Outputs = dict[str, Tensor]


@torch.inference_mode()
def dispatcher(golden: Golden, case: Case) -> Outputs:
    """A sequence of guided calls that share one cache."""
    return {f"c{i}.out": velocity for i, (velocity, _) in enumerate(dispatched(golden, case))}


def dispatched(golden: Golden, case: Case) -> Iterator[tuple[Tensor, KVCache]]:
    """After each call of the case: its velocity, and the cache as the call left it."""
    config, model = golden.config(case.config), recorded_dit(golden, case.config)
    steps = int(case.meta["num_steps"])
    cache = KVCache()
    for i, call in enumerate(case.meta["calls"]):
        given = {name.removeprefix(f"c{i}."): value for name, value in case.inputs.items() if name.startswith(f"c{i}.")}
        chunks, x = len(given["t"]), given["x"]
        tokens = x.shape[2] // chunks * (x.shape[3] // 2) * (x.shape[4] // 2)
        first, extra = int(call["slice_point"]), bool(call.get("extra"))
        written = bool(call.get("extract")) or extra or first > 0  # when the reference touches its cache (spec 6)
        step = step_embedding(steps, int(call.get("interval", 1))) if config.dit.distill else None
        window = Window(
            x=x,
            times=tuple(given["t"].tolist()),
            text=_captions(given["y_text"], given["mask_lens_text"]),
            null=null_caption(model.null_caption),
            first_chunk=first,
            kv_chunks=tuple((start // tokens, end // tokens) for start, end in given["kv_range"].tolist()),
            extra=extra,
            near_clean=bool(call.get("near")),
            step_embedding=step,
            write_chunks=chunks if written else 0,
        )
        yield dispatch(model, replace(config.sampling, num_steps=steps), window, cache), cache


def _captions(y: Tensor, lengths: Tensor) -> tuple[Caption, ...]:
    """y [D, 1, L, C], lengths [D] -> D captions of their own length."""
    return tuple(Caption(row[:n], torch.ones(n)) for row, n in zip(y[:, 0], lengths.tolist(), strict=True))


@torch.inference_mode()
def loops(golden: Golden, case: Case, runner: Runner | None = None) -> Outputs:
    """A whole generation of latents from recorded noise, with what every step was given and gave. runner: who runs the model."""
    runner = runner or Runner()
    config = case_config(golden, case.config, case.meta)
    steps: Outputs = {}

    def recorded(model: MagiDiT, sampling: Sampling, window: Window, cache: KVCache) -> Tensor:
        velocity = runner.dispatch(model, sampling, window, cache)
        steps.update({f"step{len(steps) // 2}.x": window.x, f"step{len(steps) // 2}.velocity": velocity})
        return velocity

    session = _session(
        golden, case, case.config, config, case.inputs.get("prefix_video"), replace(runner, dispatch=recorded)
    )
    chunks = {f"chunk{i}": chunk.latents for i, chunk in enumerate(session.chunks())}
    wanted = case.id.endswith("_steps") or any(name.startswith("step") for name in case.output_names)
    return chunks | (steps if wanted else {})


@torch.inference_mode()
def pipeline(golden: Golden, case: Case) -> Outputs:
    """From prefix frames to latents, through a generation, to frames; with the tiles of the reference (spec 13)."""
    dit, vae_name = case.config.split("+")
    config, vae = case_config(golden, dit, case.meta), recorded_vae(golden, vae_name)
    tiling = Tiling(case.meta["tile_sample_min_length"], case.meta["tile_px"], case.meta["tile_px"])
    outputs: Outputs = {}
    prefix = None
    if "prefix_frames_thwc" in case.inputs:
        prefix = encode_frames(vae, case.inputs["prefix_frames_thwc"].numpy(), config.scale_factor, tiling)
        outputs["prefix_latents"] = prefix
    for i, chunk in enumerate(_session(golden, case, dit, config, prefix).chunks()):
        frames = decode_frames(vae, chunk.latents, config.scale_factor, tiling)
        outputs |= {f"chunk{i}": chunk.latents, f"frames{i}_u8": torch.from_numpy(frames).permute(0, 3, 1, 2)}
    return outputs


def _session(
    golden: Golden,
    case: Case,
    dit: str,
    config: MagiConfig,
    prefix: Tensor | None,
    runner: Runner | None = None,
) -> Session:
    """A session with the case's noise, prompt and special tokens; chunks are planned as far as the noise reaches."""
    model: MagiDiT = recorded_dit(golden, dit)
    switches, negative = switches_from(case.meta.get("env") or {})
    tokens = special_tokens(golden)
    null = null_caption(model.null_caption, tokens if negative else None)
    noise = case.inputs["noise"]
    session = Session(
        model,
        config.sampling,
        height=noise.shape[3],
        width=noise.shape[4],
        seed=config.seed,
        null=null,
        prefix=prefix,
        noise=noise,
    )
    if runner is not None:
        session.run_by(runner)
    width = config.sampling.chunk_width
    count = noise.shape[2] // width - (0 if prefix is None else prefix.shape[2] // width)
    caption = recorded_caption(golden, int(case.meta["text_tokens"]))
    longest = model.config.caption_max_length
    told = (chunk_caption(caption, null, count - i, longest, tokens, switches) for i in range(count))
    session.add([ChunkCondition(each) for each in told])
    return session
