"""The bidirectional variant of a model as the scorer sees it: everything that is asked for is denoised at once, nothing is kept.

Notable: a request is one sequence of the kind that the variant was trained with (``bidirectional``). The given chunks are clean
and go along in every pass, told nothing; the guidance is the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from magi_core.checkpoint.load import load_dit
from magi_core.config import Sampling
from magi_core.denoise.schedule import Schedule
from magi_core.denoise.storage import fingerprint
from magi_core.errors import MagiError
from magi_core.evaluation.cases import Request
from magi_core.evaluation.score import Generator
from magi_core.model import MagiDiT
from magi_core.parts import Parts
from magi_core.training.bidirectional import GIVEN, LAYOUT, PREDICTED, START, WEIGHTS_FILE
from magi_core.training.dataset import ClipSet, Mix, draw_sample
from magi_core.training.objective import CLEAN_T, Layout, Sample
from magi_core.training.shortcut import guided_velocity
from magi_core.vae.chunks import decode_frames, encode_frames
from magi_core.worlds.clips import CHUNK_FRAMES
from magi_core.worlds.shapes import Frames

TOLD = Mix(null_caption=0.0, prefix=0.0, scene=0.0, special_token=1.0, late_row=0.0)


def bidirectional_of(parts: Parts, weights: Path, sampling: Sampling) -> Generator:
    """One video after the other, all of its seconds at once, by the variant of ``parts`` whose transformer is the file ``weights``.

    Requests give GIVEN chunks and ask for PREDICTED. Raises MagiError where the file is missing, damaged or of another model, and for
    other requests.
    """
    if weights.suffix != ".safetensors" or not weights.is_file():
        raise MagiError(f"{weights} is no safetensors file; magi train --bidirectional makes one, {WEIGHTS_FILE}")
    model = load_dit(replace(parts.files, dit=weights), device=parts.device, dtype=torch.float32)
    with safe_open(weights, framework="pt") as file:
        started = (file.metadata() or {}).get(START)
    if started != fingerprint(load_dit(parts.files, dtype=torch.float32)):
        raise MagiError(
            f"{weights} is no bidirectional variant of {parts.files.dit}; make one with magi train --bidirectional --start MODEL"
        )
    scale = parts.config.scale_factor
    guided = replace(sampling, prev_chunk_scales=(1.0,) * len(sampling.prev_chunk_scales))  # no chunk sees itself alone

    def generate(request: Request) -> Frames:
        if request.prefix is None or len(request.prefix) != GIVEN * CHUNK_FRAMES or len(request.prompts) != PREDICTED:
            raise MagiError(
                f"the bidirectional variant predicts {PREDICTED} seconds from {GIVEN} given ones, and nothing else"
            )
        given = encode_frames(parts.vae, request.prefix, scale, parts.tiling).cpu()
        generator = torch.Generator().manual_seed(request.seed)
        shape = (*given.shape[:2], PREDICTED * given.shape[2] // GIVEN, *given.shape[3:])
        x = torch.cat([given, torch.randn(shape, generator=generator)], dim=2)
        sample = _sample(parts, request.prompts, x, generator)
        with torch.inference_mode():
            denoised = denoise(model, guided, LAYOUT, sample.to(parts.device), x.to(parts.device))
        return decode_frames(parts.vae, denoised[:, :, given.shape[2] :], scale, parts.tiling)

    return lambda requests: [generate(request) for request in requests]


def denoise(model: MagiDiT, sampling: Sampling, layout: Layout, sample: Sample, x: Tensor) -> Tensor:
    """Latents x [N, C, T, H, W] with the noisy chunks of the layout denoised, all at the same time; clean ones stay as they are."""
    clean = torch.tensor(layout.clean, device=x.device)
    moves = (~clean).repeat_interleave(x.shape[2] // len(clean))[None, None, :, None, None]
    for begin, end in pairwise(Schedule.of(sampling).times):
        t = torch.where(clean, CLEAN_T, begin).expand(len(x), -1)
        velocity = guided_velocity(model, sampling, layout, sample, x, t)
        x = torch.where(moves, x + (end - begin) * velocity, x)
    return x


def _sample(parts: Parts, prompts: Sequence[str], x: Tensor, generator: torch.Generator) -> Sample:
    """What the chunks are told, as training tells it: as of a clip with one caption a chunk, those of given chunks unused."""
    captions = parts.encode_prompts(prompts)
    words = [list(captions).index(prompt) for prompt in prompts]
    wording = torch.tensor([[[-1] * GIVEN + words]])
    latents = torch.unflatten(x, 2, (GIVEN + PREDICTED, -1)).transpose(1, 2)
    clips = ClipSet(latents, torch.tensor([False]), wording, list(captions.values()), parts.special_tokens)
    return draw_sample(clips, LAYOUT, 1, TOLD, generator)
