"""Chunks decoded by the workers, in parts, against the VAE alone."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread, Timer

import numpy as np
import pytest
import torch

from magi_core.checkpoint.find import find_checkpoint
from magi_core.cost.machines import H100, RTX4090, Machine
from magi_core.cost.memory import Use
from magi_core.errors import MagiError
from magi_core.parallel.decoding import decodes
from magi_core.parallel.engine import Engine, start
from magi_core.parallel.fit import device_plan
from magi_core.parallel.launch import Spawned, Turns
from magi_core.parallel.worker import Decoder, Strategy
from magi_core.presets import PRESETS
from magi_core.vae import Tiling, VAEConfig, load_vae
from magi_core.vae.chunks import decode_frames
from tests.parallel.jobs import random_model
from tests.parallel.test_engine import BASE, CONFIG, Part, distance, make

TILES = Tiling(frames=4, height=32, width=32, single_frame_rule=False)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    folder = find_checkpoint("nano").vae
    assert folder is not None
    return Decoder(folder, torch.float32, TILES, 0.5)


@pytest.mark.parametrize(("crew", "times"), [("two", 3), ("two", 1), ("four", 2), ("four", 1)])
def test_workers_decode_what_the_vae_does(
    crew: str, times: int, decoder: Decoder, request: pytest.FixtureRequest
) -> None:
    """Parted in time, by rows, or both; also where there are fewer parts than workers. Within 1 of 255, for tiles in other batches."""
    workers: Spawned = request.getfixturevalue(crew)
    workers.call("run", "begin", "decoding", partial(random_model, CONFIG), Strategy(), decoder)
    engine, vae = Engine(Part(workers, "decoding")), load_vae(decoder.folder)
    latents = torch.randn(1, vae.config.z_chans, times, 8, 6, generator=torch.Generator().manual_seed(times))
    found, expected = engine.decode(latents), decode_frames(vae, latents, 0.5, TILES)
    assert found.dtype == np.uint8 and found.shape == expected.shape == (4 * times, 64, 48, 3)
    assert expected.std() > 10 and np.abs(found.astype(int) - expected).max() <= 1


def test_chunks_are_decoded_between_the_steps_of_a_session(two: Spawned, decoder: Decoder) -> None:
    """By another thread, as often as it likes."""
    two.call("run", "begin", "both", partial(random_model, CONFIG), Strategy(), decoder)
    engine, vae = Engine(Part(two, "both")), load_vae(decoder.folder)
    draw = torch.Generator().manual_seed(0)
    clips = [torch.randn(1, vae.config.z_chans, 1, 8, 6, generator=draw) for _ in range(12)]
    found: list[np.ndarray] = []
    thread = Thread(target=lambda: found.extend(map(engine.decode, clips)))
    thread.start()
    latents, _ = make(CONFIG, BASE, "text", engine.runner)
    thread.join()
    assert distance(latents, make(CONFIG, BASE, "text", None)[0]) < 1e-5
    for clip, frames in zip(clips, found, strict=True):
        assert np.abs(frames.astype(int) - decode_frames(vae, clip, 0.5, TILES)).max() <= 1


def test_a_worker_killed_while_it_decodes_is_an_error(decoder: Decoder) -> None:
    latents = torch.zeros(1, 16, 6, 32, 32)
    with start(partial(random_model, CONFIG), ["cpu", "cpu"], decoder=decoder) as engine:
        assert isinstance(engine.crew, Spawned)
        pid = engine.crew.pids[1]
        assert pid is not None
        engine.decode(latents[..., :8, :8])
        killer, begun = Timer(0.2, os.kill, (pid, signal.SIGKILL)), time.monotonic()
        killer.start()
        with pytest.raises(MagiError, match=r"worker 1 .*ended unexpectedly"):
            while True:
                engine.decode(latents)
                assert time.monotonic() < begun + 10
        killer.join()
        assert not engine.alive


def test_turns_go_to_who_waits_longest() -> None:
    turns, order = Turns(), []

    def ask(name: int) -> None:
        with turns.taken():
            order.append(name)

    threads = [Thread(target=ask, args=(name,)) for name in range(3)]
    with turns.taken():
        for waiting, thread in enumerate(threads, 2):
            thread.start()
            while len(turns._line) < waiting:
                pass
    ask(3)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]


def test_devices_decode_where_that_is_worth_it_and_the_vae_fits_beside() -> None:
    """Eight consumer GPUs with a distilled model; two of them, or a base model, gain less than a step's noise."""
    decoder = Decoder(Path(), torch.bfloat16, Tiling(single_frame_rule=False), 0.18)

    def fit(
        model: str, ranks: int, room: float = 0, strategy: Strategy = Strategy(), machine: Machine = RTX4090
    ) -> bool:
        use = replace(Use.of(PRESETS[model]), height=720, width=1280)
        return decodes(use, ranks, strategy, decoder, VAEConfig(), machine, int(room))

    own = device_plan(replace(Use.of(PRESETS["4.5b-distill"]), height=720, width=1280), Strategy()).total
    assert fit("4.5b-distill", 8) and fit("4.5b-distill", 8, own + 4e9) and not fit("4.5b-distill", 8, own + 1e9)
    assert not fit("4.5b-distill", 1) and not fit("4.5b-distill", 2) and not fit("4.5b", 8)
    assert not fit("4.5b-distill", 8, machine=H100), "pixels would take longer than what is saved"
    assert not fit("4.5b-distill", 8, strategy=Strategy(pipeline=8))
