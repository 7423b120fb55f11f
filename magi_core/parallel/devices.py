"""Devices as users name them, and how they best share a session's model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from magi_core.cost.memory import Use
from magi_core.denoise.session import Session
from magi_core.errors import MagiError
from magi_core.memory.streaming import Place
from magi_core.parallel.decoding import decodes
from magi_core.parallel.engine import FromFiles
from magi_core.parallel.fit import device_plan, place_of
from magi_core.parallel.launch_ray import check_ray, on_ray
from magi_core.parallel.predict import Way, choose, machine_of
from magi_core.parallel.worker import Decoder, Strategy
from magi_core.vae import VAEConfig

PIXELS = 8
"""Of a side of a latent."""


def parse_devices(text: str, option: str) -> list[str]:
    """The devices of "0,1", "cuda:0,cuda:1", "cpu,cpu", "8xray:cuda" or "8xray:cuda@10.0.0.1:6379"; a number is a CUDA device.

    option: what the user knows it by. Raises MagiError for anything else.
    """
    parts = [re.fullmatch(r"(?:([1-9]\d{0,2})x)?(.*)", part.strip()) for part in text.split(",")]
    named = [(int(part[1] or 1), part[2]) for part in parts if part]
    names = [f"cuda:{name}" if name.isdecimal() else name for count, name in named for _ in range(count)]
    if not all(re.fullmatch(r"cpu|cuda:\d{1,3}", name) or on_ray(name) for name in names) or not all(parts):
        raise MagiError(
            f"{option} is {text[:60]!r}; write them like 0,1 or cuda:0,cuda:1 (or cpu,cpu to try it out); "
            "or 8xray:cuda@ADDRESS, for GPUs of a Ray cluster"
        )
    if any(map(on_ray, names)) and len(set(names)) > 1:
        raise MagiError(f"{option} is {text[:60]!r}; devices on Ray must all be the same, like 8xray:cuda@ADDRESS")
    if len({name.partition(":")[0] for name in names}) > 1:
        raise MagiError(f"{option} is {text!r}; GPUs and the CPU cannot work together, name either")
    twice = [name for name in names if name.startswith("cuda") and names.count(name) > 1]
    if twice:
        raise MagiError(f"{option} is {text!r}; {twice[0]} can be named once only")
    return names


def home(devices: Sequence[str]) -> str | None:
    """The device of the session that these work for: the first of them; None where it is another host's, for this host's best."""
    return None if on_ray(devices[0]) else devices[0]


def all_there(devices: Sequence[str], option: str) -> None:
    """Raise MagiError where this computer does not have one of them, or not what speaks to a cluster's."""
    if any(map(on_ray, devices)):
        return check_ray()
    there = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    for name in devices:
        if name not in ("cpu", *there):
            raise MagiError(
                f"{option} names {name}; this computer has {', '.join(there) or 'no GPU that torch can use'}"
            )


def suited(
    session: Session,
    build: FromFiles,
    devices: Sequence[str],
    way: Way = "auto",
    wanted: Place | Literal["auto"] = "auto",
) -> tuple[FromFiles, Strategy]:
    """The way of working that is predicted to be fastest for a session of those that fit the devices, and what to build for it.

    build: what the workers will compute with; wanted: where its weights are to lie. Raises MagiError where ``way`` is impossible, or no
    way fits.
    """
    config, sampling, room = session.model.config, session.sampling, _room(devices)
    use = _use(session, build)
    use = replace(use, weights=place_of(use, len(devices), way, wanted, room))
    tokens = sampling.chunk_width * session.height * session.width // (config.t_patch_size * config.patch_size**2)
    strategy = choose(
        config,
        sampling,
        tokens,
        len(devices),
        machine_of(devices[0]),
        way,
        lambda strategy: not room or device_plan(use, strategy).fits(room),
    )
    return replace(build, weights=use.weights), strategy


def decode_too(
    session: Session, build: FromFiles, devices: Sequence[str], strategy: Strategy, decoder: Decoder, vae: VAEConfig
) -> bool:
    """Whether the devices, which work in this way, are to decode a session's chunks too; see ``decodes``."""
    machine = machine_of(devices[0])
    return decodes(_use(session, build), len(devices), strategy, decoder, vae, machine, _room(devices))


def _use(session: Session, build: FromFiles) -> Use:
    config = replace(build.files.config, dit=session.model.config)
    height, width = session.height * PIXELS, session.width * PIXELS
    return Use(config, height, width, session.sampling, weights=build.weights, fp8=build.fp8)


def _room(devices: Sequence[str]) -> int:
    """Bytes of the smallest GPU; 0 where there is none, or only other hosts know."""
    return min((room_of(device) for device in devices if device.startswith("cuda")), default=0)


def room_of(device: str) -> int:
    """Bytes of a GPU, all of them: who else is on it now may be gone when workers come. (To ask for the free ones would take some.)"""
    return int(torch.cuda.get_device_properties(device).total_memory)
