"""Session files that are not what they should be."""

from __future__ import annotations

import copy
import json
import shutil
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
from magi_core.model.origin import output_digest
from magi_core.tensor_files import write_tensors
from magi_core.text.assembly import null_caption
from magi_core.text.caption import Caption

Header = dict[str, Any]


@pytest.fixture(params=[False, True], ids=["plain", "anchored"])
def path(request: pytest.FixtureRequest, tiny: MagiDiT, tmp_path: Path) -> Path:
    """A session stopped in mid-flight, with a prefix, a keyframe, a clean chunk and keys and values; and one with an anchor."""
    sampling = Sampling(num_steps=4, window_size=2, chunk_width=2, noise2clean_kvrange=(2, 2), anchor=request.param)
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
    del header["sha256"]
    change(header, tensors)
    write_tensors(path, tensors, "magi_session", header)


def test_a_truncated_file_is_damaged_wherever_it_ends(path: Path, tiny: MagiDiT) -> None:
    whole = path.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(MagiError, match="is damaged"):
            Session.load(path, tiny)


def test_any_flipped_byte_is_noticed(path: Path, tiny: MagiDiT) -> None:
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    data = range(begin, len(whole), (len(whole) - begin) // 150)
    for place in (*range(0, begin, 7), *range(whole.index(b"sha256") - 3, whole.index(b"sha256") + 80), *data):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(MagiError, match=r"damaged|session file"):
            Session.load(path, tiny)


def test_files_of_version_1_without_a_hash_still_load(path: Path, tiny: MagiDiT) -> None:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["magi_session"]) | {"version": 1}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["sha256"]
    wanted = Session.load(path, tiny)[0].run()
    save_file(tensors, path, metadata={"magi_session": json.dumps(header)})
    made = Session.load(path, tiny)[0].run()
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(made, wanted, strict=True))


def test_files_from_before_there_were_anchors_have_none(path: Path, tiny: MagiDiT) -> None:
    anchored = Session.load(path, tiny)[0].sampling.anchor
    rewrite(path, lambda header, _: (header.update(version=2), header.pop("scenes"), header["sampling"].pop("anchor")))
    assert not Session.load(path, tiny)[0].sampling.anchor
    if anchored:
        rewrite(path, lambda header, tensors: header["sampling"].update(anchor=1))
        with pytest.raises(MagiError, match="damaged"):
            Session.load(path, tiny)


@pytest.mark.parametrize("anchor", [False, True])
def test_a_keyframe_in_the_first_chunk_is_the_same_scene(anchor: bool, tiny: MagiDiT, tmp_path: Path) -> None:
    sampling = Sampling(num_steps=4, window_size=2, chunk_width=2, noise2clean_kvrange=(2, 2), anchor=anchor)
    session = Session(tiny, sampling, height=4, width=4, seed=1, null=null_caption(tiny.null_caption))
    caption = Caption(torch.randn(3, 4), torch.ones(3))
    session.add([ChunkCondition(caption, torch.randn(1, 2, 1, 4, 4)), ChunkCondition(caption)])
    session.step()
    session.save(tmp_path / "session.safetensors")
    shutil.copy(tmp_path / "session.safetensors", tmp_path / "twice.safetensors")
    rewrite(tmp_path / "twice.safetensors", lambda header, _: header.update(scenes=[0, 0]))
    wanted = session.run()
    for name in ("session", "twice"):
        made = Session.load(tmp_path / f"{name}.safetensors", tiny)[0]
        assert made.state.scenes == (0,)
        assert all(torch.equal(a.latents, b.latents) for a, b in zip(made.run(), wanted, strict=True))


def test_every_single_loss_is_noticed(path: Path, tiny: MagiDiT) -> None:
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        header = json.loads(file.metadata()["magi_session"])
    del header["sha256"]

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
    with pytest.raises(MagiError, match="has version 99, this program reads 3; update"):
        Session.load(path, tiny)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(MagiError, match="is not a session file"):
        Session.load(path, tiny)
    with pytest.raises(MagiError, match="there is no session file"):
        Session.load(path.with_name("none.safetensors"), tiny)
    with pytest.raises(MagiError, match="is damaged"):
        Session.load(path.parent, tiny)


def test_weights_that_were_changed_inside_are_told_from_those_that_were_not(path: Path, tiny: MagiDiT) -> None:
    tiny = copy.deepcopy(tiny)
    tiny.origin = {"weights": output_digest(tiny), "sampled_weights": "one"}
    Session.load(path, tiny)  # which does not say more than its output layer
    rewrite(path, lambda header, _: header["model"].update(tiny.origin))
    tiny.final_linear.linear.weight.data *= 2  # what was merged after reading is not another model
    Session.load(path, tiny)
    tiny.origin = {**tiny.origin, "sampled_weights": "other"}
    with pytest.raises(MagiError, match=r"another model .sampled_weights one instead of other"):
        Session.load(path, tiny)
    tiny.origin = {"weights": "one"}
    rewrite(path, lambda header, _: header["model"].update(weights=output_digest(tiny)))
    Session.load(path, tiny)  # as it was written before: what the layer was with all that was merged


HOSTILE: dict[str, Callable[[Header, dict[str, Tensor]], Any]] = {
    "a plan without end": lambda h, _: h["position"].update(planned=1 << 39),
    "a place between two steps": lambda h, _: h["position"].update(clock=5.5),
    "steps without end": lambda h, _: h["sampling"].update(num_steps=1 << 40, noise2clean_kvrange=[]),
    "steps as text": lambda h, _: h["sampling"].update(num_steps="4"),
    "steps that are no whole number": lambda h, _: h["sampling"].update(num_steps=4.0),
    "no strength": lambda h, _: h["sampling"].update(text_scales=[None] * 5),
    "a strength that is no number": lambda h, _: h["sampling"].update(text_scales=[float("nan")] * 5),
    "a picture without end": lambda h, _: h.update(height=1 << 30),
    "a seed beyond all": lambda h, _: h.update(seed=1 << 64),
    "a prefix that is not there": lambda h, _: h.update(prefix_frames=100),
    "another caption's number": lambda h, _: h["captions"].update({"3": 7}),
    "nested settings": lambda h, _: h.update(sampling={"num_steps": {"a": [[]]}}),
    "values that are not finite": lambda _, t: t["in_flight.3"].fill_(float("nan")),
    "another type of latents": lambda _, t: t.update({"in_flight.3": t["in_flight.3"].to(torch.int64)}),
    "another type of keys": lambda _, t: t.update({"cache.layer_0": t["cache.layer_0"].double()}),
    "chunks that are no numbers": lambda _, t: t.update({"cache.chunks": torch.zeros(1, 2, dtype=torch.int64)}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_before_it_does_harm(path: Path, tiny: MagiDiT, kind: str) -> None:
    rewrite(path, HOSTILE[kind])
    with pytest.raises(MagiError, match=r"is damaged|seed"):
        Session.load(path, tiny)
