"""Where weights live changes no bit of what comes out, and a host sees only what it may move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from magi_core.checkpoint.load import load_dit
from magi_core.config import Sampling
from magi_core.denoise import guidance
from magi_core.denoise.session import ChunkCondition, Session
from magi_core.memory.streaming import StreamedLayers
from magi_core.model import KVCache, MagiDiT
from magi_core.presets import PRESETS
from magi_core.text.assembly import null_caption
from magi_core.text.caption import Caption
from tests.model.conftest import TINY
from tests.model.test_dit import RANGES, TOKENS, batch

FOUR = replace(TINY, num_layers=4)
PREFIX = "videodit_blocks.layers."


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint of four layers."""
    torch.manual_seed(0)
    save_file(MagiDiT(FOUR).state_dict(), tmp_path / "model.safetensors")
    return tmp_path


@torch.no_grad()
def passes(model: MagiDiT) -> list[Tensor]:
    """A pass that leaves two chunks in a cache, one that reads them, and what the cache holds."""
    cache, (x, t, y, mask) = KVCache(), batch(1)
    given: dict[str, Any] = {"dropped": False, "cache": cache}
    first = model(x, t, y, mask, chunk_index=[0, 1, 2], kv_range=RANGES, write_tokens=2 * TOKENS, **given)
    second = model(x, t, y, mask, chunk_index=[2, 3, 4], kv_range=[(0, 5 * TOKENS)] * 3, **given)
    return [first, second, *cache.state().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"fp8": True}], ids=["float32", "bfloat16", "fp8"])
def test_streamed_is_resident(weights: Path, options: dict[str, Any]) -> None:
    resident = load_dit(weights, FOUR, **options)
    streamed = load_dit(weights, FOUR, weights="streamed", **options)
    expected = passes(resident)
    for _ in range(2):  # slots begin anew with every pass
        assert same(passes(streamed), expected)


def test_public_fp8_checkpoints_stream_too(tmp_path: Path) -> None:
    config = replace(FOUR, fp8_quant=True)
    state = MagiDiT(config).state_dict()
    for name, tensor in state.items():
        if tensor.dtype == torch.float8_e4m3fn:
            tensor.copy_(torch.randn(tensor.shape))
    save_file(state, tmp_path / "model.safetensors")
    assert same(passes(load_dit(tmp_path, config, weights="streamed")), passes(load_dit(tmp_path, config, fp8=True)))


def test_a_pass_that_breaks_off_leaves_the_next_one_whole(weights: Path) -> None:
    model = load_dit(weights, FOUR, weights="streamed")
    expected = passes(model)
    plain = model.attend
    calls = []

    def breaking(*inputs: Any) -> Tensor:
        calls.append(inputs)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*inputs)

    model.attend = breaking
    with pytest.raises(KeyboardInterrupt):
        passes(model)
    model.attend = plain
    assert same(passes(model), expected)


def test_a_host_sees_only_what_it_may_move(weights: Path) -> None:
    resident, streamed = load_dit(weights, FOUR), load_dit(weights, FOUR, weights="streamed")
    whole, visible = resident.state_dict(), streamed.state_dict()
    assert visible.keys() == {name for name in whole if not name.startswith(PREFIX)}
    assert {name for name, _ in streamed.named_parameters()} == visible.keys()
    layers = streamed.videodit_blocks.layers
    assert isinstance(layers, StreamedLayers)
    kept = {f"{PREFIX}{i}.{name}": tensor for i in range(4) for name, tensor in layers.host(i).items()}
    for name, tensor in {**visible, **kept}.items():
        assert torch.equal(tensor, whole.pop(name))
    assert not whole


class Managed:
    """Linear layers that cast as ``comfy.ops.manual_cast`` does."""

    class Linear(nn.Linear):
        seen: ClassVar[list[str]] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(f"{self.in_features}x{self.out_features}")
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return nn.functional.linear(x, self.weight.to(x.dtype), bias)

    class WideLinear(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hosts_layers_do_all_products(weights: Path, dtype: torch.dtype) -> None:
    plain = load_dit(weights, FOUR, dtype=dtype)
    managed = load_dit(weights, FOUR, dtype=dtype, operations=Managed)
    assert managed.state_dict().keys() == plain.state_dict().keys()
    assert all(isinstance(m, Managed.Linear) for m in managed.modules() if isinstance(m, nn.Linear))
    Managed.Linear.seen.clear()
    assert same(passes(managed), passes(plain))
    assert len(Managed.Linear.seen) == 2 * sum(isinstance(m, nn.Linear) for m in plain.modules())


@pytest.mark.parametrize("padding", [0, 8])
def test_weights_begin_where_products_are_exact_wherever_a_file_has_them(tmp_path: Path, padding: int) -> None:
    state = MagiDiT(FOUR).state_dict()
    save_file(state, tmp_path / "model.safetensors", {"padding": "x" * padding})
    for options in ({}, {"operations": Managed}):
        model = load_dit(tmp_path, FOUR, **options)
        assert not [name for name, weight in model.state_dict().items() if weight.data_ptr() % 16]
    assert all(torch.equal(weight, state[name]) for name, weight in load_dit(tmp_path, FOUR).state_dict().items())


@pytest.mark.parametrize("shared", [True, False])
def test_the_passes_over_a_small_window_share_every_layers_way(
    weights: Path, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three passes a step, keys and values on the host: the bits of resident weights, from a third of the copies."""
    monkeypatch.setattr(guidance, "SHARED_TOKENS", TOKENS * 100 if shared else 0)
    sampling = Sampling(num_steps=8, window_size=2, chunk_width=2, noise2clean_kvrange=(2, 1), clean_chunk_kvrange=1)
    videos, ways, passes = [], [], []
    for place in ("resident", "streamed"):
        model = load_dit(weights, FOUR, weights=place)
        on, start = model.videodit_blocks.layers.on, model.start
        monkeypatch.setattr(
            model.videodit_blocks.layers, "on", lambda device, on=on: ways.append(device) or on(device), raising=True
        )
        monkeypatch.setattr(model, "start", lambda *x, start=start, **named: passes.append(1) or start(*x, **named))
        ways.clear()
        passes.clear()
        null = null_caption(model.null_caption.detach())
        told = Caption(torch.randn(5, FOUR.caption_channels, generator=torch.Generator().manual_seed(1)), torch.ones(5))
        session = Session(model, sampling, height=4, width=4, seed=3, null=null)
        session.add([ChunkCondition(told)] * 4)
        videos.append([chunk.latents for chunk in session.run()])
    assert len(videos[0]) == 4 and same(*videos)
    steps = session.progress.steps
    assert (len(ways) == steps) if shared else (len(ways) == len(passes) > 2 * steps)


def test_nano_streams(tmp_path: Path) -> None:
    """A whole video of four chunks, to the bit; saved on the way, and gone on with by either."""
    videos = []
    models = {place: load_dit("nano", weights=place) for place in ("resident", "streamed")}
    for place, model in models.items():
        sampling = replace(PRESETS["nano"].sampling, num_steps=4)
        null = null_caption(model.null_caption.detach(), None)
        session = Session(model, sampling, height=8, width=8, seed=3, null=null)
        session.add([ChunkCondition(null)] * 4)
        for _ in range(5):
            session.step()
        session.save(tmp_path / place)
        assert session.state.cache is not None and session.state.cache.on_host == (place == "streamed")
        videos.append([chunk.latents for chunk in session.run()])
    for place, other in (("resident", "streamed"), ("streamed", "resident"), ("streamed", "streamed")):
        again, *_ = Session.load(tmp_path / place, models[other])
        videos.append([chunk.latents for chunk in again.run()])
    assert len(videos[0]) == 2, "two were finished before"
    assert all(same(videos[0], video) for video in videos)
