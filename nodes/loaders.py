"""Loading a model's parts: the transformer as MODEL, the text encoder as CLIP, the VAE as VAE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import comfy.model_management as management
import torch
from comfy_api.latest import io

from magi_core import kernels
from magi_core.checkpoint.find import BUILT_IN, WEIGHTS_FOLDER, CheckpointFiles, find_checkpoint
from magi_core.checkpoint.load import load_dit
from magi_core.checkpoint.reader import weights_exist
from magi_core.cost.memory import Use
from magi_core.errors import MagiError
from magi_core.text.cache import EmbeddingCache
from magi_core.text.encoder import T5TextEncoder
from magi_core.vae import load_vae
from magi_core.vae.load import CONFIG_FILE, WEIGHTS_FILE

from . import host, inputs, memory, values
from .model import MagiModel, Weights, placed
from .sockets import CATEGORY
from .text import MagiTextEncoder
from .vae import MagiVAE

PRECISIONS = {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32}
FP8 = "fp8"
MODEL_PRECISIONS = ["auto", "bf16", FP8, "fp32"]
ATTENTION = ["auto", *(report.name for report in kernels.backends("cpu"))]
WEIGHTS = list(get_args(Weights))
MODEL_KIND, TEXT_KIND = "diffusion_models", "text_encoders"
T5_LENGTH = 800
"""Tokens of the released models' captions."""


def is_checkpoint(folder: Path) -> bool:
    """A folder of the transformer's weights, as the public release names them."""
    return folder in BUILT_IN.values() or (folder.name.startswith(WEIGHTS_FOLDER) and weights_exist(folder))


def is_t5(folder: Path) -> bool:
    """A folder with a T5 encoder in safetensors."""
    return "t5" in folder.name.lower() and (folder / CONFIG_FILE).is_file() and any(folder.glob("*.safetensors"))


def is_vae(folder: Path) -> bool:
    """A folder with a VAE in the public layout."""
    return (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()


def text_choices() -> list[str]:
    """T5 files and folders, and checkpoints to which one belongs."""
    return host.choices(TEXT_KIND, lambda folder: is_t5(folder) or is_checkpoint(folder))


def vae_choices() -> list[str]:
    """VAE folders, and checkpoints to which one belongs."""
    return host.choices(None, lambda folder: is_vae(folder) or is_checkpoint(folder))


def belonging(part: Path | None, files: CheckpointFiles) -> Path:
    """A part of a checkpoint; raises MagiError that says where to get it."""
    if part is None:
        raise MagiError(f"{files.name} is not complete: {'; '.join(files.missing)}")
    return part


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiLoadModel",
            display_name="Load MAGI Model",
            category=CATEGORY,
            description="Loads MAGI-1's video transformer. magi-nano is built in and runs on any computer; the released models are found "
            "in ComfyUI's folders diffusion_models (one file) and magi (the download as it is).",
            inputs=[
                inputs.choice(
                    "model",
                    host.choices(MODEL_KIND, is_checkpoint),
                    "magi-nano, a safetensors file in models/diffusion_models, or a folder inference_weight... anywhere below models/magi.",
                ),
                inputs.choice(
                    "precision",
                    MODEL_PRECISIONS,
                    "What is computed in. auto: what the model was made for. bf16 halves the memory of an fp32 model, and is slow on a CPU. "
                    "fp8 quantises on load: half the memory of bf16, a little less exact.",
                ),
                inputs.choice(
                    "attention",
                    ATTENTION,
                    "Which attention kernel is used. auto: the fastest that was measured for this device. The others must be installed.",
                    optional=True,
                ),
                inputs.choice(
                    "weights",
                    WEIGHTS,
                    "Where the layers' weights lie. auto: on the GPU if they fit, else streamed. resident: on the GPU as a whole. "
                    "streamed: in main memory, two layers at a time on the GPU.",
                    optional=True,
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def validate_inputs(
        cls, model: str | None, precision: str | None, attention: str | None = None, weights: str | None = None
    ) -> bool | str:
        return values.checked(
            lambda: values.check_choice("model", model, host.choices(MODEL_KIND, is_checkpoint)),
            lambda: values.check_choice("precision", precision, MODEL_PRECISIONS),
            lambda: values.check_choice("attention", attention, ATTENTION),
            lambda: attention is None or kernels.attention(attention, management.get_torch_device()),
            lambda: values.check_choice("weights", weights, WEIGHTS),
        )

    @classmethod
    def execute(cls, model: str, precision: str, attention: str = "auto", weights: Weights = "auto") -> io.NodeOutput:
        device = management.get_torch_device()
        files = find_checkpoint(host.chosen(MODEL_KIND, model))
        dtype = PRECISIONS.get(precision) or files.config.dit.params_dtype
        config = replace(files.config, dit=replace(files.config.dit, params_dtype=dtype))
        use = replace(Use.of(config), fp8=precision == FP8, gpu=device.type != "cpu")
        place = placed(weights, use, management.get_total_memory(device))
        dit = load_dit(
            files,
            device=management.unet_offload_device(),
            dtype=dtype,
            attend=kernels.attention(attention, device),
            weights="streamed" if place == "streamed" else "resident",
            fp8=use.fp8,
            operations=memory.Operations if place == "auto" else None,
        )
        return io.NodeOutput(
            memory.patcher(MagiModel(dit, files, place, asked=weights, fp8=use.fp8, attention=attention))
        )


class LoadTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiLoadTextEncoder",
            display_name="Load MAGI Text Encoder",
            category=CATEGORY,
            description="Loads the text encoder that belongs to a MAGI model. For the released models 'Load CLIP' with a t5xxl file and type "
            "mochi or ltxv serves as well.",
            inputs=[
                inputs.choice(
                    "text_encoder",
                    text_choices(),
                    "magi-nano's own, a T5 file in models/text_encoders, a T5 folder below models/magi (with its tokenizer), or a "
                    "checkpoint there, for the one that belongs to it.",
                ),
                inputs.choice(
                    "device",
                    ["auto", "cpu"],
                    "auto: the GPU in bf16, if there is one. cpu: float32 as the reference, slow and exact, needs no GPU memory.",
                ),
            ],
            outputs=[io.Clip.Output(display_name="clip")],
        )

    @classmethod
    def validate_inputs(cls, text_encoder: str | None, device: str | None) -> bool | str:
        return values.checked(
            lambda: values.check_choice("text_encoder", text_encoder, text_choices()),
            lambda: values.check_choice("device", device, ["auto", "cpu"]),
        )

    @classmethod
    def execute(cls, text_encoder: str, device: str) -> io.NodeOutput:
        place, length = host.chosen(TEXT_KIND, text_encoder), T5_LENGTH
        if is_checkpoint(place):
            files = find_checkpoint(place)
            place, length = belonging(files.t5, files), files.config.dit.caption_max_length
        target = management.get_torch_device() if device == "auto" else torch.device("cpu")
        encoder = T5TextEncoder(
            place,
            max_length=length,
            dtype=torch.float32 if target.type == "cpu" else torch.bfloat16,
            device=target,
            cache=EmbeddingCache(host.caption_folder()),
        )
        needed = encoder.files.sizes.parameters * encoder.dtype.itemsize  # files may be smaller: fp8, GGUF
        return io.NodeOutput(MagiTextEncoder(encoder, lambda: memory.make_room(needed, target)))


class LoadVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiLoadVAE",
            display_name="Load MAGI VAE",
            category=CATEGORY,
            description="Loads the video autoencoder that belongs to a MAGI model. Core's VAE Decode, VAE Encode and their tiled versions take it.",
            inputs=[
                inputs.choice(
                    "vae",
                    vae_choices(),
                    "magi-nano's own, a folder with config.json and diffusion_pytorch_model.safetensors below models/magi, or a "
                    "checkpoint there, for the one that belongs to it.",
                ),
                inputs.choice(
                    "precision",
                    list(PRECISIONS),
                    "auto: bf16 on a GPU, float32 on a CPU. fp32 is exact and needs twice the memory.",
                ),
            ],
            outputs=[io.Vae.Output(display_name="vae")],
        )

    @classmethod
    def validate_inputs(cls, vae: str | None, precision: str | None) -> bool | str:
        return values.checked(
            lambda: values.check_choice("vae", vae, vae_choices()),
            lambda: values.check_choice("precision", precision, list(PRECISIONS)),
        )

    @classmethod
    def execute(cls, vae: str, precision: str) -> io.NodeOutput:
        folder = host.chosen(None, vae)
        if is_checkpoint(folder):
            files = find_checkpoint(folder)
            folder = belonging(files.vae, files)
        small = vae in host.BUILT_IN or management.get_torch_device().type == "cpu"
        dtype = PRECISIONS[precision] or (torch.float32 if small else torch.bfloat16)
        network = load_vae(folder, management.unet_offload_device(), dtype)
        held = memory.patcher(memory.Held(network))
        return io.NodeOutput(MagiVAE(network, lambda needed: memory.on_device(held, working_bytes=needed), held))


NODES: list[Any] = [LoadModel, LoadTextEncoder, LoadVAE]
