"""Loading a model for a command: the options that say which and how, with as many threads as it is worth."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args

import torch

from magi_core.checkpoint.find import BUILT_IN
from magi_core.config import DTYPES, Sampling
from magi_core.denoise.reuse import reuse_in
from magi_core.denoise.storage import fingerprint
from magi_core.errors import MagiError
from magi_core.lora import Lora
from magi_core.making import Decode, Making
from magi_core.memory.streaming import Place
from magi_core.pipeline import Magi, load

NARROW = 512
"""Below this width a second thread costs more than it gains: magi-nano is 8 times slower with two threads on busy cores."""


OPTIONS = ("model", "device", "devices", "precision", "weights", "attention", "reuse")
"""What ``add_model`` adds that a run must go on with."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options of ``open_asked`` and ``sharing``."""
    parser.add_argument(
        "--model",
        default="nano",
        help=f"{', '.join(BUILT_IN)} (default: nano), or a checkpoint folder, configuration or safetensors file",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: the first GPU, else the CPU)")
    parser.add_argument(
        "--devices",
        metavar="0,1",
        help="several devices work on the video together: 0,1 or cuda:0,cuda:1, or on a Ray cluster 8xray:cuda@ADDRESS",
    )
    parser.add_argument(
        "--precision",
        choices=[*DTYPES, "fp8"],
        help="what the transformer computes in (default: the model's); fp8 halves the weights of bfloat16, and is lossy",
    )
    parser.add_argument(
        "--weights",
        choices=["auto", *get_args(Place)],
        default="auto",
        help="keep the weights on the GPU, or stream them from main memory to run large models on small GPUs (default: what fits)",
    )
    parser.add_argument("--attention", default="auto", help="the attention kernel (default: the fastest measured)")
    parser.add_argument(
        "--reuse",
        type=float,
        metavar="THRESHOLD",
        help="faster, not the same video: a noisy chunk's velocity serves again until it should have changed by this, say 0.05",
    )
    add_lora(parser)
    parser.add_argument("--text-cache", type=Path, metavar="FOLDER", help="keep encoded prompts in this folder")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How a chunk is denoised, where it is not as the model says."""
    parser.add_argument("--steps", type=int, help="denoise steps of a chunk, a multiple of the window")
    parser.add_argument("--window", type=int, help="chunks denoised at once, 1 to 4")
    parser.add_argument(
        "--anchor",
        action=argparse.BooleanOptionalAction,
        help="keep the first chunk, or the newest keyframe's, in sight for as long as the video goes on, or not, in place of what the model does",
    )


def add_lora(parser: argparse.ArgumentParser) -> None:
    """The adapters that the model uses, today's files."""
    parser.add_argument(
        "--lora",
        type=_lora,
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="let the model use this LoRA, a file or a folder; strength 1 if not given, negative turns it around (may be repeated)",
    )


def _lora(text: str) -> Lora:
    try:
        return Lora.parse(text).pinned()
    except MagiError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """How closely a base model follows what it is told and shown, where it is not as the model says."""
    parser.add_argument("--guidance", type=float, help="strength of the prompt while the noise is strong (t < 0.3)")
    parser.add_argument(
        "--history-guidance",
        type=float,
        metavar="STRENGTH",
        help="strength of the seconds before while the noise is strong; more keeps longer what the prompt does not say again",
    )


def sampling_asked(arguments: argparse.Namespace, magi: Magi) -> Sampling:
    """The model's settings with the options of ``add_sampling`` and ``add_guidance``."""
    names = ("steps", "window", "anchor", "guidance", "history_guidance")
    return magi.config.sampling.changed(**{name: getattr(arguments, name) for name in names})


def open_asked(arguments: argparse.Namespace) -> Magi:
    """The model that the options of ``add_model`` ask for."""
    names = ("device", "precision", "weights", "attention", "text_cache")
    given = {name: getattr(arguments, name) for name in names} | {"loras": arguments.lora}
    if arguments.devices is None:
        return open_model(arguments.model, **given)
    from magi_core.cli.devices import keep_home
    from magi_core.parallel.devices import home, parse_devices

    devices = parse_devices(arguments.devices, "--devices")
    magi = open_model(arguments.model, **given | {"device": arguments.device or home(devices)})
    keep_home(magi)
    return magi


Within = Callable[[Making], AbstractContextManager[Decode]]
"""In what a video is made, from its first step to its last; it gives what decodes the video's chunks."""


@contextmanager
def sharing(arguments: argparse.Namespace, magi: Magi) -> Iterator[Within]:
    """In what the command's videos are made, one after the other: by ``--devices``, and with velocities used again where ``--reuse`` allows it."""
    with _by_devices(arguments, magi) as by_devices:

        @contextmanager
        def within(making: Making) -> Iterator[Decode]:
            with by_devices(making) as decode:
                if arguments.reuse is not None:
                    reuse_in(making.session, arguments.reuse)
                yield decode

        yield within


@contextmanager
def _by_devices(arguments: argparse.Namespace, magi: Magi) -> Iterator[Within]:
    if arguments.devices is None:
        yield lambda making: nullcontext(magi.decoder())
        return
    from magi_core.cli.devices import Workers
    from magi_core.parallel.devices import parse_devices

    with closing(Workers(magi, parse_devices(arguments.devices, "--devices"))) as workers:
        yield workers.at


def made_with(arguments: argparse.Namespace, magi: Magi, sampling: Sampling) -> dict[str, object]:
    """What makes the videos of a measurement: the model, by name and by its weights, and every option that changes them."""
    return {
        "model": arguments.model,
        "weights": fingerprint(magi.dit),
        "precision": arguments.precision,
        "reuse": arguments.reuse,
        "loras": [asdict(lora) for lora in magi.used_loras],
        "sampling": asdict(sampling),
    }


def open_model(
    model: str,
    device: str | None = None,
    precision: str | None = None,
    weights: Place | Literal["auto"] = "auto",
    attention: str = "auto",
    text_cache: Path | None = None,
    loras: Sequence[Lora] = (),
) -> Magi:
    """The model as ``pipeline.load`` finds it; a narrow one on the CPU takes one thread of this process."""
    magi = load(
        model,
        device=device,
        dtype=DTYPES.get(precision or ""),
        weights=weights,
        fp8=precision == "fp8",
        attention=attention,
        text_cache=text_cache,
        loras=loras,
    )
    if magi.device.type == "cpu" and magi.config.dit.hidden_size < NARROW:
        torch.set_num_threads(1)
    return magi
