"""`magi estimate`: what a second of video costs, for any model and machine, before anything is loaded."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from magi_core.cli.model import add_sampling
from magi_core.config import DTYPES, MagiConfig
from magi_core.errors import MagiError
from magi_core.memory.streaming import Place
from magi_core.presets import PRESETS

if TYPE_CHECKING:
    from magi_core.cost.estimate import Around

WORDS = 200
"""Tokens of a long prompt."""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    estimate = commands.add_parser(
        "estimate", help="operations, bytes, memory and the least seconds of any model and size; loads nothing"
    )
    estimate.add_argument(
        "model", nargs="?", default="nano", help=f"{', '.join(PRESETS)}, or a folder, configuration or safetensors file"
    )
    estimate.add_argument("--size", metavar="WxH", help="size in pixels (default: the model's)")
    add_sampling(estimate)
    estimate.add_argument("--seconds", type=float, default=4.0, help="length of the whole video (default: 4)")
    estimate.add_argument("--words", type=int, default=WORDS, help=f"tokens of a prompt (default: {WORDS})")
    estimate.add_argument("--precision", choices=[*DTYPES, "fp8"], help="default: the model's")
    estimate.add_argument("--weights", choices=["auto", *get_args(Place)], default="auto")
    machine = estimate.add_mutually_exclusive_group()
    machine.add_argument("--device", choices=["h100", "rtx4090", "cpu"], default="h100", help="cpu: this one, measured")
    machine.add_argument(
        "--rates",
        nargs=4,
        type=float,
        metavar=("PRODUCTS", "ATTENTION", "MEMORY", "HOST"),
        help="another GPU: TFLOP/s of linear layers and of attention, GB/s of its memory and from main memory",
    )
    estimate.set_defaults(run=run_estimate)


def run_estimate(arguments: argparse.Namespace) -> int:
    from magi_core.cli.generate import parse_size
    from magi_core.cost.estimate import estimate, place, vae_bytes
    from magi_core.cost.machines import MACHINES, by_hand, here
    from magi_core.cost.memory import Use

    for name, value in (("--words", arguments.words), ("--seconds", arguments.seconds)):
        if not 0 < value < 1e6:
            raise MagiError(f"{name} is {value}; it must be above 0")
    if arguments.rates and not all(0 < rate < 1e9 for rate in arguments.rates):
        raise MagiError(f"--rates are {arguments.rates}; all four must be above 0")
    config, around = _model(arguments.model)
    fp8 = arguments.precision == "fp8"
    if arguments.precision and not fp8:
        config = replace(config, dit=replace(config.dit, params_dtype=DTYPES[arguments.precision]))
    sampling = config.sampling.changed(steps=arguments.steps, window=arguments.window, anchor=arguments.anchor)
    height, width = parse_size(arguments.size)
    height, width = height or config.height, width or config.width
    unit = config.dit.patch_size * around.vae.patch_size
    if height % unit or width % unit or min(height, width) < 2 * unit:
        raise MagiError(f"--size is {width}x{height}; both must be multiples of {unit}, at least {2 * unit}")
    gpu = arguments.rates is not None or arguments.device != "cpu"
    if arguments.rates:
        machine = by_hand(*arguments.rates)
    else:
        machine = MACHINES[arguments.device] if gpu else here(config.dit.params_dtype)
    use = Use(config, height, width, sampling, fp8=fp8, beside=vae_bytes(around.vae), gpu=gpu)
    wanted = place(use, machine.capacity) if arguments.weights == "auto" else arguments.weights
    report = estimate(replace(use, weights=wanted), machine, around, seconds=arguments.seconds, words=arguments.words)
    sys.stdout.write(report.text() + "\n")
    return 0


def _model(name: str) -> tuple[MagiConfig, Around]:
    """A preset with the release's VAE and text encoder, or what lies in files."""
    from magi_core.checkpoint.find import BUILT_IN, find_checkpoint
    from magi_core.cost.estimate import Around
    from magi_core.text.weights import find_t5
    from magi_core.vae import read_vae_config, tiling_for
    from magi_core.vae.load import CONFIG_FILE

    if name in PRESETS and name not in BUILT_IN:
        return PRESETS[name], Around()
    files, around = find_checkpoint(name), Around()
    if files.vae is not None:
        vae = read_vae_config(files.vae / CONFIG_FILE)
        around = replace(around, vae=vae, tiling=replace(tiling_for(vae), single_frame_rule=False))
    if files.t5 is not None:
        around = replace(around, text=find_t5(files.t5).sizes)
    return files.config, around
