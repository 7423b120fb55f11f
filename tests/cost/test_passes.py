"""The arithmetic is what real sessions compute: linear layers by torch's counter, attention by the ranges that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from magi_core.checkpoint.load import empty_dit
from magi_core.config import DiTConfig, Sampling
from magi_core.cost.around import T5_XXL, decode_operations, text_operations
from magi_core.cost.count import count_operations
from magi_core.cost.passes import (
    Operations,
    caption_operations,
    chunk_passes,
    null_words,
    operations,
    passes_of,
    video_passes,
)
from magi_core.denoise import ChunkCondition, Session
from magi_core.denoise.schedule import Schedule
from magi_core.kernels import AttnRange
from magi_core.model.linear import wide_product
from magi_core.presets import PRESETS
from magi_core.text.caption import Caption
from magi_core.text.weights import T5Sizes, build_t5
from magi_core.vae import Tiling, VAEConfig, ViTVAE, decode_tiled

WORDS, FRAMES, SIDE = 7, 2, 4
"""Of a prompt, a chunk and its latents."""
TOKENS = FRAMES * (SIDE // 2) ** 2
NARROW = DiTConfig(
    num_layers=3,
    hidden_size=48,
    ffn_hidden_size=80,
    num_attention_heads=6,
    num_query_groups=2,
    kv_channels=16,
    in_channels=4,
    out_channels=4,
    caption_channels=12,
    caption_max_length=60,
    params_dtype=torch.float32,
)


class Counting:
    """Attention without numbers: it adds up the pairs of its ranges, by what they read."""

    def __init__(self) -> None:
        self.pairs = {"chunks": 0, "text": 0}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[AttnRange]) -> Tensor:
        text = sum(r.k_end - r.k_start for r in ranges) < TOKENS or len(k) % TOKENS
        pairs = sum((r.q_end - r.q_start) * (r.k_end - r.k_start) for r in ranges)
        self.pairs["text" if text else "chunks"] += pairs * q.shape[1] * q.shape[2] * 4
        return torch.zeros_like(q)


def counted(config: DiTConfig, sampling: Sampling, chunks: int) -> Operations:
    """What a real session of ``chunks`` chunks computes."""
    attend = Counting()
    torch.manual_seed(0)
    model = empty_dit(config, attend=attend).to_empty(device="cpu").requires_grad_(False)
    for parameter in model.parameters():
        parameter.data.zero_()
    caption = Caption(torch.zeros(WORDS, config.caption_channels), torch.ones(WORDS))
    null = Caption(torch.zeros(null_words(config), config.caption_channels), torch.ones(null_words(config)))
    session = Session(model, sampling, height=SIDE, width=SIDE, seed=0, null=null)
    session.add([ChunkCondition(caption)] * chunks)
    products = count_operations(session.run)
    assert session.done
    return Operations(products, attend.pairs["chunks"], attend.pairs["text"])


@pytest.mark.parametrize("chunks", [1, 6])
@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        (NARROW, Sampling(num_steps=16, chunk_width=FRAMES)),
        (NARROW, Sampling(num_steps=8, window_size=1, chunk_width=FRAMES)),
        (NARROW, Sampling(num_steps=8, chunk_width=FRAMES, noise2clean_kvrange=(3, 2), anchor=True)),
        (NARROW, Sampling(num_steps=8, window_size=2, chunk_width=FRAMES, clean_chunk_kvrange=3)),
        (replace(NARROW, gated_linear_unit=True), Sampling(num_steps=8, chunk_width=FRAMES, noise2clean_kvrange=())),
        (
            replace(NARROW, distill=True, half_channel_vae=True),
            Sampling(num_steps=12, chunk_width=FRAMES, cfg_number=1),
        ),
        (replace(NARROW, distill=True), Sampling(num_steps=8, chunk_width=FRAMES, cfg_number=1)),
        (
            replace(NARROW, distill=True, fp8_quant=True),
            Sampling(num_steps=16, window_size=2, chunk_width=FRAMES, cfg_number=1),
        ),
    ],
)
def test_a_whole_schedule_is_counted_exactly(config: DiTConfig, sampling: Sampling, chunks: int) -> None:
    made = operations(config, video_passes(sampling, chunks), TOKENS, WORDS)
    captions = caption_operations(config, WORDS)
    if sampling.cfg_number == 3 or chunks > 1:  # a clean chunk, and every pass without text, is told nothing
        captions += caption_operations(config, null_words(config))
    assert made + Operations(products=captions) == counted(config, sampling, chunks)


def test_a_full_step_of_the_release_is_counted_exactly_without_memory() -> None:
    """4.5B, 720 x 720: the model's own code on the meta device, one pass of four chunks behind one."""
    config, tokens = PRESETS["4.5b"].dit, 12150
    step = Schedule.of(Sampling()).step(0, 20, 10 * 16 + 1)
    (text, *_) = passes_of(Sampling(), step)
    model = empty_dit(config, attend=lambda q, k, v, ranges: torch.empty_like(q))
    with torch.device("meta"):
        x, t = torch.empty(1, 16, 24, 90, 90), torch.empty(1, 4)
        y = torch.empty(4, WORDS, config.caption_channels)
    few = torch.empty(1, 8, dtype=torch.bfloat16, device="meta")
    wide_product(few, few)  # tries once what the device can do
    mask, whole = torch.ones(4, WORDS), [(0, 4 * tokens)] * 4
    counted = count_operations(lambda: model(x, t, y, mask, dropped=False, chunk_index=range(4), kv_range=whole))
    captions = 4 * caption_operations(config, WORDS)
    assert counted == operations(config, [text], tokens, WORDS).products + captions
    assert text.seen == 2 + 3 + 4 + 5 and text.past == 1


def test_the_middle_of_a_long_video_is_a_longer_one_less_a_shorter() -> None:
    quick = Sampling(num_steps=8, cfg_number=1)
    for sampling in (Sampling(), Sampling(window_size=1), quick, replace(quick, anchor=True)):
        longer, shorter = (operations(NARROW, video_passes(sampling, n), TOKENS, WORDS) for n in (30, 29))
        one = operations(NARROW, chunk_passes(sampling), TOKENS, WORDS)
        assert (longer.products - shorter.products, longer.attention - shorter.attention) == pytest.approx(
            (one.products, one.attention)
        )


def test_passes_without_weight_cost_nothing() -> None:
    sampling = Sampling()
    kinds = [[one.kind for one in passes_of(sampling, step)] for step in Schedule.of(sampling).run(0, 3)]
    assert kinds[0] == ["text", "context"]  # the first chunk alone is the first chunk with context
    assert ["text", "context", "alone"] in kinds
    assert kinds[-1] == ["context"]  # only nearly clean chunks are left


def test_text_encoder_and_vae() -> None:
    sizes = T5Sizes(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    network = build_t5(sizes).eval()
    words = torch.ones(1, 9, dtype=torch.long)
    assert count_operations(lambda: network(input_ids=words)) == text_operations(sizes, 9)
    assert text_operations(T5_XXL, 800) == pytest.approx(7.4e12, rel=0.05)
    small = VAEConfig(embed_dim=256, depth=1, num_heads=2)
    whole = decode_operations(small, Tiling(), 3, 32, 32)
    vae, latents = ViTVAE(replace(small, depth=4)), torch.zeros(1, 16, 1, 4, 4)
    deep = decode_operations(replace(small, depth=4), Tiling(), 1, 4, 4)
    assert deep == count_operations(lambda: decode_tiled(vae, latents, Tiling()))
    assert 3.5 < decode_operations(small, Tiling(), 6, 48, 48) / whole < 8  # four tiles, three of them smaller
