"""`magi finetune`: a base model, or a LoRA for it, trained on a folder of videos with captions; by several GPUs under torchrun."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from magi_core.cli.generate import parse_size
from magi_core.cli.samples import draw_samples, sheet_file
from magi_core.errors import MagiError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from magi_core.checkpoint.find import CheckpointFiles
    from magi_core.storyboard import Storyboard
    from magi_core.training.dataset import ClipSet
    from magi_core.training.finetune import FinetuneSettings
    from magi_core.training.lora import LoraSettings

WORK = "training"
STEPS = 1000
SAMPLE_SECONDS = 3
CAPTION_BYTES = 1 << 40
"""Encoded captions are kept, however many."""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    tune = commands.add_parser(
        "finetune",
        help="train a base model further on a folder of videos and captions; the same command goes on with an unfinished run",
    )
    tune.add_argument(
        "folder", type=Path, help="videos (.mp4 .mov .webm .mkv .gif), beside each a .txt with one line a second"
    )
    tune.add_argument(
        "--model", default="nano", help="'nano' (default), a checkpoint folder, configuration or safetensors file"
    )
    tune.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="model folder to make; with --lora a .safetensors file, or a folder as peft has it",
    )
    tune.add_argument(
        "--lora", type=int, metavar="RANK", help="train a LoRA of this rank (8 to 128) in place of the whole model"
    )
    tune.add_argument(
        "--lora-alpha", type=float, metavar="ALPHA", help="scale of the LoRA, over its rank (default: RANK)"
    )
    tune.add_argument(
        "--lora-targets",
        nargs="+",
        default=[],
        metavar="NAME",
        help="adapt the layers with one of these in their names (default: all linear ones of attention and MLP)",
    )
    tune.add_argument(
        "--size", metavar="WxH", help="size to train at in pixels, multiples of 16 (default: the model's)"
    )
    length = tune.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help=f"length of the training (default: {STEPS})")
    length.add_argument("--minutes", type=float, help="train for so long instead of for a number of steps")
    tune.add_argument("--batch", type=int, default=8, help="sequences of a step, over all GPUs (default: 8)")
    tune.add_argument(
        "--passes",
        type=int,
        default=4,
        help="cut the batch in so many parts, one after the other: more need less memory (default: 4)",
    )
    tune.add_argument(
        "--rate", type=float, help="learning rate (default: 0.06 / the model's width, of a LoRA 0.5 / the width)"
    )
    tune.add_argument(
        "--seed",
        type=int,
        default=0,
        help="equal seeds begin a LoRA alike and draw the same training sequences (default: 0)",
    )
    tune.add_argument("--recompute", action="store_true", help="compute layers twice to need much less memory")
    tune.add_argument(
        "--shard", action="store_true", help="under torchrun: spread weights over the GPUs, for models that fit on none"
    )
    tune.add_argument(
        "--precision",
        choices=("bfloat16", "float32"),
        help="of products; weights are float32 (default: bfloat16, on a CPU without AVX-512 float32)",
    )
    tune.add_argument("--device", help="cpu or cuda (default: the GPU, else the CPU)")
    tune.add_argument(
        "--keep-minutes", type=float, default=10, help="save, and draw a sample sheet, so often (default: 10)"
    )
    tune.add_argument("--samples", type=int, default=4, help="videos of a sample sheet, 0 for none (default: 4)")
    tune.add_argument(
        "--sample",
        action="append",
        metavar="STORYBOARD",
        help="what a sample shows; may be repeated (default: captions of the folder)",
    )
    tune.set_defaults(run=run_finetune)


def run_finetune(arguments: argparse.Namespace) -> int:
    from magi_core.checkpoint.find import find_checkpoint
    from magi_core.denoise.storage import fingerprint
    from magi_core.lora import Lora, write_adapter
    from magi_core.pipeline import load
    from magi_core.run_lock import alone
    from magi_core.training.export import check_other_folder, write_model
    from magi_core.training.finetune import finetune, recomputed, trainable
    from magi_core.training.layouts import layouts_for
    from magi_core.training.lora import Matrices, frozen
    from magi_core.training.origin import claim
    from magi_core.training.ranks import launched

    logging.getLogger("magi_core").setLevel(logging.INFO)
    settings, lora = _settings(arguments), _lora(arguments)
    files = find_checkpoint(arguments.model)
    height, width = parse_size(arguments.size)
    size = height or files.config.height, width or files.config.width
    output: Path = arguments.output
    name = output.resolve().name.removesuffix(".safetensors")
    work = output.resolve().with_name(f"{name}.{WORK}") if lora else output / WORK
    if lora is None:
        check_other_folder(files, output)
    stories = _stories(arguments)
    with launched(_device(arguments.device)) as ranks, ExitStack() as locked:
        model = frozen(files, ranks.device) if lora else trainable(files, ranks.device)
        origin = {"command": "finetune", "model": fingerprint(model)}
        if lora:
            origin |= {"output": output.name, "LoRA": lora.described}
        with ranks.first_before_others():
            if ranks.first:
                claim(output, work, origin)
                locked.enter_context(alone(work))
        if arguments.recompute:
            recomputed(model)
        matrices = Matrices(model, lora, arguments.seed) if lora else None
        with ranks.first_before_others():
            clips = _clips(arguments.folder, files, size, work, ranks.device)
        layouts = layouts_for(files.config.sampling, int(clips.lengths.max()))

        def keep(weights: Mapping[str, Tensor], step: int) -> None:
            if matrices is None:
                write_model(files, weights, output)
            else:
                write_adapter(output, matrices.layers(weights), files.name, {"steps": str(step)})
            if stories:
                made = (output, []) if matrices is None else (arguments.model, [Lora(output)])
                magi = load(made[0], device=ranks.device, loras=made[1])
                draw_samples(magi, stories, size, sheet_file(work, step))

        finetune(model, clips, layouts, work, settings, ranks, keep, matrices)
        if ranks.first:
            kind, use = (
                ("model folder", "--model") if matrices is None else ("LoRA", f"--model {arguments.model} --lora")
            )
            sys.stdout.write(f"{output} is a {kind}: magi generate {use} {output} ...\n")
    return 0


def _device(name: str | None) -> torch.device:
    """Of this process, or what kind those of torchrun are; nothing is put on it yet."""
    import torch

    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise MagiError(f"--device is {name!r}, which is no device; use cpu, cuda or cuda:0") from error


def _settings(arguments: argparse.Namespace) -> FinetuneSettings:
    from magi_core.training.finetune import RATE_TIMES_WIDTH, FinetuneSettings
    from magi_core.training.lora import RATE_TIMES_WIDTH as LORA_RATE

    if arguments.passes < 1 or arguments.batch < 1 or arguments.batch % arguments.passes:
        raise MagiError(
            f"--batch {arguments.batch} cannot be cut into {arguments.passes} equal parts; change --batch or --passes"
        )
    if arguments.samples < 0:
        raise MagiError(f"--samples is {arguments.samples}; it must be 0, for none, or more")
    steps = STEPS if arguments.steps is None and arguments.minutes is None else arguments.steps
    return FinetuneSettings(
        steps=steps,
        minutes=arguments.minutes,
        passes=arguments.passes,
        together=arguments.batch // arguments.passes,
        rate=arguments.rate,
        rate_times_width=LORA_RATE if arguments.lora is not None else RATE_TIMES_WIDTH,
        seed=arguments.seed,
        keep_minutes=arguments.keep_minutes,
        autocast=None if arguments.precision is None else arguments.precision == "bfloat16",
        shard=arguments.shard,
    )


def _lora(arguments: argparse.Namespace) -> LoraSettings | None:
    """What learns in place of the whole model, if that is asked for; raises MagiError where options contradict each other."""
    from magi_core.training.lora import LoraSettings

    output: Path = arguments.output
    if output.resolve() == arguments.folder.resolve():
        raise MagiError(f"--output {output} is the folder of the videos; choose another one for the result")
    if arguments.lora is not None:
        return LoraSettings(arguments.lora, arguments.lora_alpha, tuple(arguments.lora_targets))
    if arguments.lora_alpha is not None or arguments.lora_targets:
        raise MagiError("--lora-alpha and --lora-targets are for a LoRA; add --lora RANK, usually 16")
    if output.suffix == ".safetensors":
        raise MagiError(f"--output {output} is one file, which only a LoRA is; name a folder, or add --lora RANK")
    return None


def _clips(folder: Path, files: CheckpointFiles, size: tuple[int, int], work: Path, device: torch.device) -> ClipSet:
    """The folder's videos as the model's VAE and text encoder see them; both are let go of afterwards."""
    from magi_core.pipeline import Magi
    from magi_core.text.cache import EmbeddingCache
    from magi_core.text.encoder import T5TextEncoder
    from magi_core.training.videos import Encoding, open_videos

    magi = Magi(files, device=device)
    encoding = Encoding(magi.vae, magi.tiling, files.config.scale_factor, size)
    cache = EmbeddingCache(work / "captions", CAPTION_BYTES)
    encoder = T5TextEncoder(magi.text_encoder.files, max_length=files.config.dit.caption_max_length, cache=cache)
    return open_videos(folder, encoding, encoder, magi.special_tokens, work / "videos")


def _stories(arguments: argparse.Namespace) -> list[Storyboard]:
    """What samples show: what was asked for, else the beginnings of the first videos' captions."""
    from magi_core.storyboard import Shot, Storyboard
    from magi_core.training.videos import captions_of, find_videos, read_captions

    if arguments.sample:
        return [Storyboard.parse(text) for text in arguments.sample]
    stories: list[Storyboard] = []
    for video in find_videos(arguments.folder):
        with suppress(MagiError):  # said where the videos are read
            said = captions_of(read_captions(video.with_suffix(".txt")), SAMPLE_SECONDS)
            stories.append(Storyboard(tuple(Shot(line, 1.0) for line in said if line)))
    return list(dict.fromkeys(stories))[: arguments.samples]
