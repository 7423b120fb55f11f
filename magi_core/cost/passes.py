"""The model passes of every step of a schedule, and the operations of each: exact, by arithmetic alone.

A multiplication and an addition count as two operations. Linear layers count where they run: layers and embedders for every pass, what
is made of a caption once. Attention counts the pairs of queries and keys of its ranges, which is what an exact kernel must compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from magi_core.config import DiTConfig, Sampling
from magi_core.cost.work import Work
from magi_core.denoise.guidance import guided_parts
from magi_core.denoise.schedule import Schedule, Step
from magi_core.model.embedders import FREQUENCIES
from magi_core.text.assembly import NULL_LENGTH


@dataclass(frozen=True)
class ModelPass:
    """One pass over some chunks."""

    kind: str
    """Of guidance: "text", "context", "alone", or the "distilled" model's only one; "anchor": its keys and values, before a step."""
    told: tuple[bool, ...]
    """By chunk, whether it reads its prompt; else the null caption."""
    seen: int
    """Chunks seen, summed over the pass's chunks."""
    past: int = 0
    """Finished chunks whose keys and values are read."""
    written: int = 0
    """Chunks whose keys and values are stored."""


@dataclass(frozen=True)
class Operations:
    """Of the transformer, by part."""

    products: float = 0.0
    """Linear layers and embedders."""
    attention: float = 0.0
    """Chunks seeing chunks."""
    text_attention: float = 0.0
    """Chunks reading text."""

    @property
    def total(self) -> float:
        return self.products + self.attention + self.text_attention

    def __add__(self, other: Operations) -> Operations:
        parts = zip(vars(self).values(), vars(other).values(), strict=True)
        return Operations(*(a + b for a, b in parts))


def passes_of(sampling: Sampling, step: Step) -> list[ModelPass]:
    """The passes of a step of a video that began with noise."""
    first, extra = step.chunks.start - step.extra, int(step.extra)
    prompts = (False,) * extra + (True,) * len(step.chunks)
    seen = sum(end - start for start, end in step.kv_chunks)
    past = first - min(start for start, _ in step.kv_chunks)
    anchor = [] if step.anchor is None else [ModelPass("anchor", (False,), 1, written=1)]
    if sampling.cfg_number == 1:
        copy = int(step.near_clean)
        return [*anchor, ModelPass("distilled", prompts + (True,) * copy, seen + copy, past, extra)]
    schedule = Schedule.of(sampling)
    times = (sampling.clean_t,) * extra + tuple(schedule.times[done] for done in step.steps)
    passes = anchor
    for part in guided_parts(sampling, times, step.kv_chunks, extra=step.extra, store=step.extra):
        untold = (False,) * len(part.chunks)
        if part.kind == "alone":
            passes.append(ModelPass(part.kind, untold, len(part.chunks)))
        elif part.kind == "text":
            passes.append(ModelPass(part.kind, prompts, seen, past))
        else:
            passes.append(ModelPass(part.kind, untold, seen, past, extra))
    return passes


def video_passes(sampling: Sampling, chunks: int) -> Iterator[ModelPass]:
    """All passes of a video of ``chunks`` chunks, the filling and emptying of the window included."""
    for step in Schedule.of(sampling).run(0, chunks):
        yield from passes_of(sampling, step)


def chunk_passes(sampling: Sampling) -> list[ModelPass]:
    """The passes between one finished chunk and the next, in the middle of a long video."""
    schedule = Schedule.of(sampling)
    before = sampling.window_size + max(schedule.clean_kv_length, *schedule.kv_lengths, 1)
    if not sampling.noise2clean_kvrange:  # every chunk sees all before it: there is no middle
        before = sampling.window_size
    stage = range(before * schedule.stage_steps, (before + 1) * schedule.stage_steps)
    return [one for clock in stage for one in passes_of(sampling, schedule.step(0, before + 1, clock))]


def operations(config: DiTConfig, passes: Iterable[ModelPass], tokens: int, words: int) -> Operations:
    """Of passes over chunks of ``tokens`` tokens with prompts of ``words`` tokens."""
    return sum((_of_pass(config, one, tokens, words) for one in passes), Operations())


def caption_operations(config: DiTConfig, words: int) -> float:
    """What is made of a caption once: its projection, and every layer's keys and values."""
    keys = 2 * config.num_query_groups * config.kv_channels
    return 2.0 * words * config.text_hidden_size * (config.caption_channels + config.num_layers * keys)


def null_words(config: DiTConfig) -> int:
    """Tokens of the null caption."""
    return min(NULL_LENGTH, config.caption_max_length)


def _of_pass(config: DiTConfig, one: ModelPass, tokens: int, words: int) -> Operations:
    work, chunks = Work.of(config), len(one.told)
    rows, condition = chunks * tokens, config.cond_hidden_size
    values = config.t_patch_size * config.patch_size**2
    layer = work.per_token * rows + 2.0 * chunks * condition * 2 * config.hidden_size
    times = chunks + config.distill  # the distilled model is told its step size too
    outside = (
        2.0 * rows * config.hidden_size * values * (config.in_channels + config.out_channels)
        + 2.0 * times * condition * (FREQUENCIES + condition)
        + 2.0 * 2 * config.caption_channels * condition
    )
    text = sum(words if told else null_words(config) for told in one.told)
    return Operations(
        config.num_layers * layer + outside,
        config.num_layers * work.per_pair * one.seen * tokens**2,
        config.num_layers * work.per_pair * tokens * text,
    )
