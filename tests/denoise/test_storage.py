"""Session files that are not what they should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from magi_core.config import Sampling
from magi_core.denoise import ChunkCondition, Session
from magi_core.errors import MagiError
from magi_core.model import MagiDiT
from magi_core.text.assembly import null_caption
from magi_core.text.caption import Caption

Header = dict[str, Any]


@pytest.fixture
def path(tiny: MagiDiT, tmp_path: Path) -> Path:
    """A session stopped in mid-flight, with a prefix, a keyframe, a clean chunk and keys and values."""
    sampling = Sampling(num_steps=4, window_size=2, chunk_width=2, noise2clean_kvrange=(2, 2))
    prefix = torch.randn(1, 2, 5, 4, 4)
    session = Session(tiny, sampling, height=4, width=4, seed=1, null=null_caption(tiny.null_caption), prefix=prefix)
    session.add([ChunkCondition(Caption(torch.randn(3, 4), torch.ones(3)))] * 3)
    for _ in range(5):
        session.step()
    session.save(tmp_path / "session.safetensors")
    return tmp_path / "session.safetensors"


def rewrite(path: Path, change: Callable[[Header, dict[str, Tensor]], None]) -> None:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["magi_session"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, path, metadata={"magi_session": json.dumps(header)})


def test_a_truncated_file_is_damaged_wherever_it_ends(path: Path, tiny: MagiDiT) -> None:
    whole = path.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(MagiError, match="is damaged"):
            Session.load(path, tiny)


def test_every_single_loss_is_noticed(path: Path, tiny: MagiDiT) -> None:
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        header = json.loads(file.metadata()["magi_session"])

    def losses() -> list[Callable[[Header, dict[str, Tensor]], Any]]:
        tensors = [lambda _, t, n=name: t.pop(n) for name in names]
        shapes = [lambda _, t, n=name: t.update({n: t[n][..., :1].clone()}) for name in names if name != "cache.chunks"]
        fields = [lambda h, _, n=name: h.pop(n) for name in header]
        places = [lambda h, _, n=name: h["position"].update({n: -3}) for name in header["position"]]
        types = [lambda h, _, n=name: h.update({n: [None]}) for name in header]
        return [*tensors, *shapes, *fields, *places, *types]

    silent = []
    for change in losses():
        path.write_bytes(whole)
        rewrite(path, change)
        try:
            Session.load(path, tiny)
        except MagiError:
            continue
        silent.append(change)
    assert silent == []


def test_another_model_a_newer_version_and_other_files_are_named(path: Path, tiny: MagiDiT) -> None:
    with torch.random.fork_rng():
        other = MagiDiT(tiny.config)
        wider = MagiDiT(replace(tiny.config, ffn_hidden_size=64))
    with pytest.raises(MagiError, match=r"another model .weights .* instead of"):
        Session.load(path, other)
    with pytest.raises(MagiError, match=r"another model .ffn_hidden_size 32 instead of 64"):
        Session.load(path, wider)
    rewrite(path, lambda header, _: header.update(version=99))
    with pytest.raises(MagiError, match="has version 99, this program reads 1; update"):
        Session.load(path, tiny)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(MagiError, match="is not a session file"):
        Session.load(path, tiny)
    with pytest.raises(MagiError, match="there is no session file"):
        Session.load(path.with_name("none.safetensors"), tiny)
    with pytest.raises(MagiError, match="is damaged"):
        Session.load(path.parent, tiny)
