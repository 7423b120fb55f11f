"""One function a family of tensor cases: the recorded inputs through our code, giving the outputs by their recorded names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from magi_core.denoise.schedule import step_embedding
from magi_core.golden import Case, Golden
from magi_core.model import KVCache, MagiDiT
from magi_core.text.assembly import NULL_LENGTH, null_caption, stacked_condition
from magi_core.text.encoder import T5TextEncoder
from magi_core.text.weights import T5Files, T5Sizes
from magi_core.vae import Tiling, decode_tiled, encode_tiled, frames_to_video, video_to_frames
from magi_core.verify import sampling
from magi_core.verify.recorded import recorded_caption, recorded_dit, recorded_vae, special_tokens, switches_from

Outputs = dict[str, Tensor]


@torch.inference_mode()
def dit_forward(golden: Golden, case: Case) -> Outputs:
    """One pass of the network; the kvcache cases write the chunks of a prefix, then read them."""
    model, inputs, meta = recorded_dit(golden, case.config), case.inputs, case.meta
    if "x_prefix" in inputs:
        cache = KVCache()
        before, after = inputs["t_prefix"].shape[1], inputs["t"].shape[1]
        real = int(meta.get("mask_len", NULL_LENGTH))
        x = inputs["x_prefix"]
        tokens = x.shape[2] * (x.shape[3] // model.config.patch_size) * (x.shape[4] // model.config.patch_size)
        prefix = _forward(
            model,
            inputs,
            "_prefix",
            torch.full((before,), real),
            dropped=True,
            first=0,
            cache=cache,
            write_tokens=tokens // model.config.t_patch_size,
        )
        read = _forward(model, inputs, "", torch.full((after,), real), dropped=False, first=before, cache=cache)
        return {"velocity_prefix": prefix, "velocity_read": read}
    step = None
    if model.config.distill:
        step = step_embedding(int(meta["num_steps"]), int(meta.get("distill_interval", 1)))
    dropped, first = bool(meta.get("caption_dropout_mask", [False])[0]), int(meta.get("slice_point", 0))
    lengths = inputs["xattn_mask_lens"]
    return {"velocity": _forward(model, inputs, "", lengths, dropped=dropped, first=first, step_embedding=step)}


def _forward(
    model: MagiDiT, inputs: Mapping[str, Tensor], suffix: str, lengths: Tensor, *, first: int, **options: Any
) -> Tensor:
    y = inputs[f"y{suffix}"].squeeze(1)
    chunks = inputs[f"t{suffix}"].shape[1]
    velocity: Tensor = model(
        inputs[f"x{suffix}"],
        inputs[f"t{suffix}"],
        y,
        torch.arange(y.shape[1]) < lengths[:, None],
        chunk_index=range(first, first + chunks),
        kv_range=[(start, end) for start, end in inputs[f"kv_range{suffix}"].tolist()],
        **options,
    )
    return velocity


@torch.inference_mode()
def text_assembly(golden: Golden, case: Case) -> Outputs:
    """The stacked condition of a whole video: special tokens, text and null captions."""
    meta = case.meta
    config = golden.config(case.config)
    offset = int(meta["prefix_latent_frames"]) // config.sampling.chunk_width
    captions = [recorded_caption(golden, int(meta["text_tokens"]))] * (int(meta["chunk_num"]) - offset)
    switches, negative = switches_from(meta.get("env") or {})
    tokens = special_tokens(golden)
    null = null_caption(recorded_dit(golden, case.config).null_caption, tokens if negative else None)
    y, masks = stacked_condition(captions, null, offset, tokens, switches)
    return {"y_first12": y[:, :, :12], "y_last4": y[:, :, -4:], "y_sum": y.sum(2), "emb_masks": masks}


@torch.inference_mode()
def vae(golden: Golden, case: Case) -> Outputs:
    """Encoding and decoding, whole or in tiles."""
    network, meta = recorded_vae(golden, case.config), case.meta
    if "tile_sample_min_length" in meta:
        spatial = bool(meta.get("allow_spatial_tiling", True))
        tiling = Tiling(
            frames=meta["tile_sample_min_length"],
            height=meta["tile_sample_min_height"] if spatial else None,
            width=meta["tile_sample_min_width"] if spatial else None,
            spatial_overlap=meta["spatial_tile_overlap_factor"],
            temporal_overlap=meta["temporal_tile_overlap_factor"],
        )
        if "video_thwc" in case.inputs:
            return {"latent": encode_tiled(network, frames_to_video(case.inputs["video_thwc"]), tiling)}
        pixels = decode_tiled(network, case.inputs["latent"], tiling)
        if "uint8" in meta.get("op", "") and "before" not in meta["op"]:
            return {"frames_u8": video_to_frames(pixels).permute(0, 3, 1, 2)}
        return {"frames": pixels[0].transpose(0, 1)}
    if "video_thwc" in case.inputs:
        video = frames_to_video(case.inputs["video_thwc"])
        return {"encoder_moments": network.moments(video), "latent_mode": network.encode(video)}
    return {"pixels": network.decode(case.inputs["latent"])}


@torch.inference_mode()
def t5(golden: Golden, case: Case) -> Outputs:
    """The text encoder's features of given token ids."""
    document = golden.config_document(case.config)
    sizes = T5Sizes(**{field.name: document[field.name] for field in fields(T5Sizes)})
    encoder = T5TextEncoder(T5Files((golden.weights_path(case.config),), None, sizes))
    return {"last_hidden_state": encoder.encode_ids(case.inputs["input_ids"], case.inputs["attention_mask"])}


FAMILIES: Mapping[str, Callable[[Golden, Case], Outputs]] = {
    "dit_forward": dit_forward,
    "dispatcher": sampling.dispatcher,
    "loops": sampling.loops,
    "text_assembly": text_assembly,
    "vae": vae,
    "pipeline": sampling.pipeline,
    "t5": t5,
}
