"""MAGI-1's diffusion transformer: velocities of noisy chunks, given their captions and the chunks before them (spec 3).

Notable:
- Hidden states are [chunks, tokens, h]: what belongs to a chunk (gate, caption) is broadcast, never gathered.
- Captions are packed: only real text tokens are projected and attended to.
- Parameter names are those of the public checkpoint, and a fresh model's parameters have the dtypes that it computes with
  (spec 4: float32 for embedders, output and most norms, params_dtype for the rest, fp8 as stored).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from magi_core.config import DiTConfig
from magi_core.errors import MagiError
from magi_core.kernels import Attend, AttnRange, attend
from magi_core.model.attention import Context, Past
from magi_core.model.block import Block
from magi_core.model.cache import KVCache
from magi_core.model.embedders import CaptionEmbedder, FinalLinear, PatchEmbedder, TimestepEmbedder, unpatchify
from magi_core.model.layers import Layers, ResidentLayers
from magi_core.model.memo import Memo, PackedText, Prompt, PromptText, Text
from magi_core.model.norms import Norm
from magi_core.model.rope import Rope, Rotation
from magi_core.model.tiles import in_tiles


class Blocks(nn.Module):
    """The layers and the norm behind them."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.layers: Layers = ResidentLayers(Block(config, i) for i in range(config.num_layers))
        self.final_layernorm = Norm(
            config.hidden_size, config.layernorm_epsilon, torch.float32, one_plus=config.apply_layernorm_1p
        )


@dataclass(eq=False)
class Pass:
    """A forward pass on its way through the layers."""

    hidden: Tensor
    """[items * chunks, tokens, h]."""
    context: Context
    grid: tuple[int, int, int, int]
    """Items, and latent frames, height and width of an item, in tokens."""


class MagiDiT(nn.Module):
    """The network. Build it under ``torch.device("meta")`` to allocate nothing before weights are assigned."""

    def __init__(self, config: DiTConfig, attend: Attend = attend) -> None:
        super().__init__()
        self.config = config
        self.attend = attend
        self.x_embedder = PatchEmbedder(config)
        self.t_embedder = TimestepEmbedder(config)
        self.y_embedder = CaptionEmbedder(config)
        self.rope = Rope(config.rope_bands, config.kv_channels)
        self.videodit_blocks = Blocks(config)
        self.final_linear = FinalLinear(config)
        self.origin: Mapping[str, str] = {}
        """Which weights were read, see ``origin.py``; empty where none were."""

    @property
    def null_caption(self) -> Tensor:
        """The learned "no caption", [caption_max_length, caption_channels]."""
        return self.y_embedder.null_caption_embedding

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Velocity [N, C, T, H, W] float32 of one pass; takes and raises what ``start`` does."""
        return self.finish([self.start(*inputs, **named)])[0]

    def start(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | Sequence[Prompt],
        y_mask: Tensor | None = None,
        *,
        dropped: bool | Tensor,
        chunk_index: Sequence[int],
        kv_range: Sequence[tuple[int, int]],
        step_embedding: float | None = None,
        cache: KVCache | None = None,
        write_tokens: int = 0,
        memo: Memo | None = None,
    ) -> Pass:
        """A pass over latents x [N, C, T, H, W], T = D chunks, up to the first layer.

        t [N, D]: time of every chunk, 0 noise .. 1 clean. y [N*D, L, caption_channels], y_mask [N*D, L]: caption of every
        chunk; only tokens whose mask is not 0 are read (a mask on the CPU spares a device synchronisation). Or y is a
        ``Prompt`` for each of the N*D chunks, of which nothing is computed twice.
        dropped: whether the gates are told "no caption": for all chunks, or a bool tensor that broadcasts to [N, D].
        chunk_index (D): place of each chunk in the video. kv_range (D): tokens [start, end) that each chunk sees, counted
        from the video's first token with a cache, else from the first token of x. step_embedding: the distilled model's
        step size (spec 3.5).
        cache: earlier chunks (then N is 1 and chunk_index counts up by one); the first write_tokens of the current tokens,
        whole chunks, are stored in it. memo: what passes share. Prompts, cache and memo are for inference only.
        Raises MagiError for sizes that do not fit.
        """
        config = self.config
        n, chunks = t.shape
        frames, height, width = self._grid(x, y, t.shape, chunk_index, kv_range)
        tokens = frames * height * width  # of a chunk
        past = _past(cache, chunk_index, kv_range, tokens, write_tokens, n)
        if past is not None and self.videodit_blocks.layers.on_host:
            past.cache.keep_on_host()
        seen = tokens * (chunks + (past.chunk if past else 0))
        if any(not 0 <= start <= end <= seen for start, end in kv_range):
            raise MagiError(
                f"kv_range is {list(kv_range)}; every [start, end) must lie within the {seen} tokens there are"
            )
        flags = dropped if isinstance(dropped, Tensor) else torch.full((1, 1), dropped, device=x.device)

        with _without_autocast(x.device):
            scaled = x.float() * config.x_rescale_factor
            if config.half_channel_vae:
                scaled = torch.cat([scaled, scaled], dim=1)
            hidden = self.x_embedder(scaled).to(config.params_dtype).reshape(n * chunks, tokens, -1)
            condition = self.t_embedder(t) + self.y_embedder.condition(flags.expand(n, chunks))
            if step_embedding is not None:
                condition = condition + self.t_embedder(t.new_full((1,), step_embedding))
            text, text_ranges = self._text(y, y_mask, tokens)
            rotation = self._rotation([place * frames for place in chunk_index], frames, height, width, memo)
        context = Context(
            attend=self.attend,
            condition=condition.flatten(0, 1).to(config.params_dtype),
            rotation=rotation,
            text=text,
            self_ranges=_self_ranges(kv_range, n, tokens, past),
            text_ranges=text_ranges,
            past=past,
        )
        return Pass(hidden, context, (n, chunks * frames, height, width))

    def finish(self, passes: Sequence[Pass]) -> list[Tensor]:
        """The velocity [N, C, T, H, W] float32 of every pass; each layer serves all of them before the next one is asked for.

        It comes out what one after the other would give, passes over one cache included.
        """
        self.through(passes)
        return [self.velocity(each) for each in passes]

    def through(self, passes: Sequence[Pass]) -> None:
        """Take passes through the layers that there are."""
        for layer in self.videodit_blocks.layers.on(passes[0].hidden.device):
            for each in passes:
                each.hidden = layer(each.hidden, each.context)

    def velocity(self, done: Pass) -> Tensor:
        """What a pass that is through all layers gives."""
        with _without_autocast(done.hidden.device):
            (values,) = in_tiles(self._values, done.hidden)
            velocity = unpatchify(values.reshape(*done.grid, -1), self.config)
        return velocity[:, : self.config.latent_channels] / self.config.x_rescale_factor

    def _values(self, hidden: Tensor) -> tuple[Tensor]:
        """hidden [chunks, tokens, h] -> the values of every token's patch."""
        return (self.final_linear(self.videodit_blocks.final_layernorm(hidden)),)

    def _text(
        self, y: Tensor | Sequence[Prompt], y_mask: Tensor | None, tokens: int
    ) -> tuple[Text, tuple[AttnRange, ...]]:
        """The captions as layers read them, and which of their tokens every chunk of ``tokens`` tokens sees."""

        def embed(rows: Tensor) -> Tensor:
            return self.y_embedder.text(rows.float()).to(self.config.params_dtype)

        if isinstance(y, Tensor):
            if y_mask is None:
                raise MagiError("captions given as a tensor need a mask: y_mask [N * D, L]")
            rows, lengths = _pack(y, y_mask)
            starts = [sum(lengths[:i]) for i in range(len(lengths))]
            return PackedText(embed(rows)), _text_ranges(starts, lengths, tokens)
        distinct = list(dict.fromkeys(y))
        for prompt in distinct:
            prompt.embed(embed)
        begins = {prompt: sum(map(len, distinct[:i])) for i, prompt in enumerate(distinct)}
        return PromptText(distinct), _text_ranges([begins[prompt] for prompt in y], list(map(len, y)), tokens)

    def _rotation(
        self, first_frames: Sequence[int], frames: int, height: int, width: int, memo: Memo | None
    ) -> Rotation:
        def make() -> Rotation:
            rotation: Rotation = self.rope(first_frames, frames, height, width)
            return rotation

        return make() if memo is None else memo.rotation((*first_frames, frames, height, width), make)

    def _grid(
        self,
        x: Tensor,
        y: Tensor | Sequence[Prompt],
        batch: torch.Size,
        chunk_index: Sequence[int],
        kv_range: Sequence[tuple[int, int]],
    ) -> tuple[int, int, int]:
        """Tokens of a chunk along time, height and width."""
        config = self.config
        n, chunks = batch
        if x.ndim != 5 or x.shape[0] != n or x.shape[1] != config.latent_channels:
            raise MagiError(
                f"latents have the shape {list(x.shape)}; this model takes [{n}, {config.latent_channels}, frames, height, width]"
            )
        shape = list(y.shape) if isinstance(y, Tensor) else [len(y), *y[0].tokens.shape]
        if shape[::2] != [n * chunks, config.caption_channels]:
            raise MagiError(
                f"captions have the shape {shape}; this model takes [{n * chunks}, tokens, {config.caption_channels}]"
            )
        if len(chunk_index) != chunks or len(kv_range) != chunks:
            raise MagiError(
                f"{chunks} chunks need as many chunk_index and kv_range entries; got {len(chunk_index)} and {len(kv_range)}"
            )
        frames, height, width = x.shape[2:]
        for name, size, multiple in (
            ("frames", frames, config.t_patch_size * chunks),
            ("height", height, config.patch_size),
            ("width", width, config.patch_size),
        ):
            if size % multiple or size < multiple:
                raise MagiError(f"latent {name} is {size}; it must be a multiple of {multiple}")
        grid = frames // config.t_patch_size // chunks, height // config.patch_size, width // config.patch_size
        if min(grid[1:]) < 2:
            raise MagiError(
                f"latent height and width are {height} x {width}; both must be at least {2 * config.patch_size}"
            )
        return grid


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Float32 is meant where it stands, whatever training wraps around the model; the meta device has no autocast."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def _past(
    cache: KVCache | None,
    chunk_index: Sequence[int],
    kv_range: Sequence[tuple[int, int]],
    tokens: int,
    write_tokens: int,
    items: int,
) -> Past | None:
    if cache is None:
        return None
    first = chunk_index[0]
    if items != 1 or list(chunk_index) != list(range(first, first + len(chunk_index))):
        raise MagiError(
            f"a KV cache serves one video and consecutive chunks; got {items} items, chunks {list(chunk_index)}"
        )
    if write_tokens % tokens or not 0 <= write_tokens <= tokens * len(chunk_index):
        raise MagiError(
            f"write_tokens is {write_tokens}; it must be whole chunks of {tokens} tokens, at most {len(chunk_index)}"
        )
    oldest = min((start for start, end in kv_range if end > start), default=first * tokens)
    return Past(cache, min(oldest // tokens, first), first, write_tokens // tokens)


def _self_ranges(
    kv_range: Sequence[tuple[int, int]], items: int, tokens: int, past: Past | None
) -> tuple[AttnRange, ...]:
    """Every item's chunks with the keys they see; keys start with the oldest chunk that is read."""
    total = len(kv_range) * tokens  # of an item
    shift = past.read_from * tokens if past else 0
    return tuple(
        AttnRange(
            item * total + i * tokens,
            item * total + (i + 1) * tokens,
            item * total + start - shift,
            item * total + end - shift,
        )
        for item in range(items)
        for i, (start, end) in enumerate(kv_range)
    )


def _text_ranges(starts: Sequence[int], lengths: Sequence[int], tokens: int) -> tuple[AttnRange, ...]:
    """Chunk i sees its own text tokens; neighbours that see the same ones become one range."""
    ranges: list[AttnRange] = []
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        if ranges and (ranges[-1].k_start, ranges[-1].k_end) == (start, start + length) and length:
            ranges[-1] = ranges[-1]._replace(q_end=(i + 1) * tokens)
        else:
            ranges.append(AttnRange(i * tokens, (i + 1) * tokens, start, start + length))
    return tuple(ranges)


def _pack(y: Tensor, y_mask: Tensor) -> tuple[Tensor, list[int]]:
    """The caption tokens whose mask is set, [tokens, caption_channels], and how many each chunk has."""
    mask = y_mask.detach().cpu() != 0
    rows = mask.flatten().nonzero()[:, 0].to(y.device, non_blocking=True)
    return y.flatten(0, 1).index_select(0, rows), mask.sum(dim=1).tolist()
