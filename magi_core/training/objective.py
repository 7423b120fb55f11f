"""Flow matching on chunks: which sequences the DiT is trained on, and the error that is minimised.

Notable:

* x_t = (1 - t) noise + t latent and the target is v = latent - noise; every chunk has its own noise and its own t.
* t is drawn along the sampler's own schedule: a position s in 0..1 is logit-normal and t = s^2 / (3 - 2 s^2). The median is
  t = 0.17 and 72 % of the draws lie below t = 0.3, close to logit-normal noise with shift 1/3, but with both ends covered.
* A noisy chunk reads what the KV ranges of magi-nano let the sampler read, a clean one only itself: whatever its stage in the window,
  a noisy chunk sees the window before it and a clean chunk, so nothing that training shows is missing when a video gets long.
* Clean chunks carry the null caption, the adaLN row "dropped" and up to 5 % noise under the label of a clean chunk, because the
  cache that they fill when sampling is written by the unconditional pass.
* Frames of a first image or of a partial prefix are pasted clean into a noisy chunk and carry no loss.

Shape letters: N sequences, D chunks in a sequence, C channels, F frames of a chunk, T = D*F, L text tokens, E text channels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from magi_core.config import Sampling
from magi_core.denoise.schedule import EVERYTHING, kv_chunks
from magi_core.model import MagiDiT
from magi_core.text.assembly import NULL_LENGTH

CLEAN_T = 0.9999
CLEAN_NOISE = 0.05
SCHEDULE_MEAN, SCHEDULE_SPREAD = 0.5, 1.0


@dataclass(frozen=True)
class Layout:
    """The chunks of one training sequence: which are clean, where in the video they stand, and what each may read."""

    clean: tuple[bool, ...]
    places: tuple[int, ...]
    """Place of each chunk in the video, in chunks; several noisy versions of one chunk may stand side by side."""
    reads: tuple[tuple[int, int], ...]
    """For each chunk the chunks [start, end) of this sequence that it attends to."""
    stagger: float | None = None
    """How much earlier on the schedule a noisy chunk is than the one before it; None draws every chunk's time on its own."""
    span: float = 1.0
    """How far on the schedule the last chunk may be: from there on a sampler's chunks read something else."""
    anchored: bool = False
    """The first chunk is an anchor (``Sampling.anchor``): shown right before the others, and from ``gap`` chunks earlier in the clip."""
    gap: int = 0
    own: int = 0
    """The first so many chunks are of the model's own making (``rollouts``): none of them is what it should answer."""

    @property
    def history(self) -> tuple[int, ...]:
        """The clean chunks that are seconds before the noisy ones: all but an anchor, which is what it shows."""
        return tuple(i for i, clean in enumerate(self.clean) if clean and not (self.anchored and i == 0))

    @property
    def shown(self) -> tuple[int, ...]:
        """Which chunk of the clip each one shows, counted from the first; its place in the video but for the ``gap`` behind an anchor."""
        return tuple(place + self.gap * (i > 0) for i, place in enumerate(self.places))


def window_layout(clean: int, noisy: int, sampling: Sampling) -> Layout:
    """``noisy`` chunks in a sampler's window, each a stage ahead of its successor, behind ``clean`` clean ones (spec 7).

    Chunks read what they do while the last one is in the first stage, which goes on for as long as nobody would read something else.
    """
    window, ranges, chunks = sampling.window_size, sampling.noise2clean_kvrange or (EVERYTHING,), clean + noisy

    def reads(done: int) -> tuple[tuple[int, int], ...]:
        """With ``done`` of the window's stages behind the last chunk."""
        stages = {place: done + chunks - 1 - place for place in range(clean, chunks)}
        lengths = {place: ranges[stage * len(ranges) // window] for place, stage in stages.items()}
        return tuple(kv_chunks(place, lengths.get(place, 1)) for place in range(chunks))

    same = 1
    while same <= window - noisy and reads(same) == reads(0):
        same += 1
    places = tuple(range(chunks))
    return Layout((True,) * clean + (False,) * noisy, places, reads(0), stagger=1 / window, span=same / window)


def anchored(layout: Layout, gap: int) -> Layout:
    """A window's layout behind an anchor, which its noisy chunks read and nothing else does; ``gap`` chunks of the clip lie between.

    As a session shows it (``Schedule.anchor``): right before the oldest chunk that a noisy one reads.
    """
    reads = [
        (start + bool(start or clean), end + 1) for (start, end), clean in zip(layout.reads, layout.clean, strict=True)
    ]
    places = tuple(place + 1 for place in layout.places)
    behind = replace(layout, clean=(True, *layout.clean), places=(0, *places), reads=((0, 1), *reads))
    return replace(behind, anchored=True, gap=gap)


def rollout_layout(stage: int) -> Layout:
    """A full window behind an anchor and a clean chunk of the model's own, as far as its chunk in ``stage`` 0..3; from there on the true ones.

    Of ``rollouts``' sequences it shows the first chunk and ``stage`` more than the first five.
    """
    layout = anchored(window_layout(1, SAMPLING.window_size, SAMPLING), gap=stage)
    return replace(layout, own=1 + ROLLOUT_HISTORY - stage)


def bidirectional_layout(clean: int, noisy: int) -> Layout:
    """``noisy`` chunks at one noise level behind ``clean`` clean ones, each reading all, as in models that make a video in one piece."""
    chunks = clean + noisy
    return Layout((True,) * clean + (False,) * noisy, tuple(range(chunks)), ((0, chunks),) * chunks, stagger=0.0)


SAMPLING = Sampling()
"""What a chunk may read and how windows are staggered, as the released models have it and magi-nano too."""
ROLLOUT_HISTORY = ROLLOUT_TARGETS = SAMPLING.window_size
"""Seconds before the one that a rollout is gone on from, and true ones from there on: whatever its stage, a window is filled."""
LAYOUTS = {
    "first": Layout((False,), (0,), ((0, 1),)),
    "next": Layout((False, True, False), (1, 0, 1), ((0, 2), (1, 2), (1, 3))),
    "pair": window_layout(0, 2, SAMPLING),
    "start": window_layout(0, 4, SAMPLING),
    "behind": window_layout(1, 2, SAMPLING),
    "stream": window_layout(1, 4, SAMPLING),
    "far": window_layout(3, 2, SAMPLING),
    "anchored stream": anchored(window_layout(1, 4, SAMPLING), gap=1),
    "anchored far": anchored(window_layout(3, 2, SAMPLING), gap=1),
}
"""The situations of the sampler: a first chunk; a chunk after a clean one (two noise levels share one clean chunk, which halves
its cost); the window of a new video, filling and full; the same behind one clean chunk; two chunks that go on from a clip; the same
behind an anchor, from clips of seven chunks."""
ROLLOUTS = {f"rollout {stage}": rollout_layout(stage) for stage in range(SAMPLING.window_size)}
"""A window that goes on from the model's own seconds, by the stage of its first true chunk (``rollouts``)."""


@dataclass(frozen=True)
class Sample:
    """Chunks as they come from the data set, before noise.

    latents [N, C, T, H, W] normalised; pasted [N, D] leading frames of each chunk that are given (0 for none); text [N*D, L, E] with
    mask [N*D, L], L at least 50; null [N, D] True where a chunk takes the null caption instead; dropped [N, D] True where its gates
    take the adaLN row of the unconditional pass.
    """

    latents: Tensor
    pasted: Tensor
    text: Tensor
    text_mask: Tensor
    null: Tensor
    dropped: Tensor

    def to(self, device: torch.device | str) -> Sample:
        """The same on another device."""
        return Sample(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Noised:
    """What the model is shown, x [N, C, T, H, W] and t [N, D], and what it should answer: target, where weight [N, 1, T, 1, 1] is 1."""

    x: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor

    def to(self, device: torch.device | str) -> Noised:
        """The same on another device."""
        return Noised(*(getattr(self, field.name).to(device) for field in fields(self)))


def schedule_time(position: Tensor) -> Tensor:
    """Timestep t in 0..1 at a position 0..1 of the sampler's schedule: squared, then shifted by 1/3 towards noise (spec 8.1)."""
    return position**2 / (3 - 2 * position**2)


def draw_times(layout: Layout, count: int, generator: torch.Generator) -> Tensor:
    """Timesteps [count, D] of the noisy chunks of a layout; clean chunks have the label of a clean chunk."""
    chunks = len(layout.places)
    if layout.stagger is not None:
        ahead = layout.stagger * torch.arange(chunks - 1, -1, -1)
        noisiest = torch.rand(count, 1, generator=generator) * layout.span
        position = (noisiest + ahead).clamp(max=1)
    else:
        normal = torch.randn(count, chunks, generator=generator)
        position = torch.sigmoid(SCHEDULE_MEAN + SCHEDULE_SPREAD * normal)
    return torch.where(torch.tensor(layout.clean), CLEAN_T, schedule_time(position))


def add_noise(sample: Sample, layout: Layout, t: Tensor, generator: torch.Generator) -> Noised:
    """Noise every chunk to its time t [N, D], but for clean chunks, paste the given frames, and state the target."""
    count, _, frames, _, _ = sample.latents.shape
    chunks = len(layout.places)
    clean = torch.tensor(layout.clean)
    leaked = 1 - CLEAN_NOISE * torch.rand(count, chunks, generator=generator)
    noise = torch.randn(sample.latents.shape, generator=generator)
    given = torch.arange(frames // chunks) < sample.pasted[..., None]  # [N, D, F]
    share = torch.where(clean, leaked, t)[..., None].expand(given.shape)
    mix = torch.where(given, 1.0, share).reshape(count, 1, frames, 1, 1)
    asked = ~clean & (torch.arange(chunks) >= layout.own)
    weight = (~given & asked[:, None]).float().reshape(count, 1, frames, 1, 1)
    return Noised(noise + mix * (sample.latents - noise), t, sample.latents - noise, weight)


def captions(sample: Sample, null_caption: Tensor) -> tuple[Tensor, Tensor]:
    """Text [N*D, L, E] and mask [N*D, L] with the model's null caption where a chunk takes it."""
    null = sample.null.reshape(-1, 1)
    null_mask = (torch.arange(sample.text.shape[1]) < NULL_LENGTH).to(sample.text_mask)
    text = torch.where(null[..., None], null_caption[: sample.text.shape[1]].to(sample.text), sample.text)
    return text, torch.where(null, null_mask, sample.text_mask)


def velocities(
    model: MagiDiT, layout: Layout, sample: Sample, x: Tensor, t: Tensor, step_embedding: float | None = None
) -> Tensor:
    """Velocity [N, C, T, H, W] of latents x [N, C, T, H, W] at times t [N, D] that read each other as the layout says.

    sample: what the chunks are told; its latents are not looked at. step_embedding: a distilled model's step size (spec 3.5).
    """
    _, _, frames, height, width = x.shape
    patch = model.config.patch_size
    tokens = frames // len(layout.places) // model.config.t_patch_size * (height // patch) * (width // patch)
    text, mask = captions(sample, model.null_caption)
    velocity: Tensor = model(
        x,
        t,
        text,
        mask,
        dropped=sample.dropped,
        chunk_index=layout.places,
        kv_range=[(start * tokens, end * tokens) for start, end in layout.reads],
        step_embedding=step_embedding,
        cache=None,
        write_tokens=0,
    )
    return velocity.float()


def squared_errors(velocity: Tensor, noised: Noised) -> Tensor:
    """Squared velocity error of every chunk, summed over its frames that carry loss and averaged over channels and pixels: [N, D].

    velocity [N, C, T, H, W]: the model's answer. Divide a sum of errors by the same sum of ``noised.weight`` for the mean squared error.
    """
    error: Tensor = ((velocity - noised.target) ** 2 * noised.weight).mean((1, 3, 4))
    return error.reshape(*noised.t.shape, -1).sum(2)
