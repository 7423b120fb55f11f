"""Encoder, decoder and tiling equal the recorded reference."""

import pytest
import torch

from magi_core.golden import Golden, compare
from magi_core.vae import Tiling, ViTVAE, decode_tiled, encode_tiled, frames_to_video, load_vae, video_to_frames

CASES = (
    "a_encode_image_native",
    "a_encode_image",
    "a_encode_video_native",
    "a_encode_video_T12",
    "a_decode_T3",
    "a_decode_T1",
    "b_decode_native",
    "b_encode_video",
    "b_encode_video_T4",
    "c_encode_video",
    "c_decode",
    "b_tiled_encode",
    "b_tiled_encode_T13",
    "b_tiled_encode_image",
    "b_tiled_encode_overlap_t",
    "b_tiled_encode_no_spatial",
    "b_tiled_decode_T4",
    "b_tiled_decode_T6_u8",
    "b_tiled_decode_overlap_t",
    "a_tiled_decode_T3",
    "a_tiled_encode",
)


def tiling_of(meta: dict) -> Tiling:
    return Tiling(
        frames=meta["tile_sample_min_length"],
        height=meta["tile_sample_min_height"] if meta.get("allow_spatial_tiling", True) else None,
        width=meta["tile_sample_min_width"] if meta.get("allow_spatial_tiling", True) else None,
        spatial_overlap=meta["spatial_tile_overlap_factor"],
        temporal_overlap=meta["temporal_tile_overlap_factor"],
    )


def compute(vae: ViTVAE, inputs: dict[str, torch.Tensor], meta: dict, name: str) -> torch.Tensor:
    """The output called ``name`` of a case."""
    if name == "encoder_moments":
        return vae.moments(frames_to_video(inputs["video_thwc"]))
    if name == "latent_mode":
        return vae.encode(frames_to_video(inputs["video_thwc"]))
    if name == "latent":
        return encode_tiled(vae, frames_to_video(inputs["video_thwc"]), tiling_of(meta))
    if name == "pixels":
        return vae.decode(inputs["latent"])
    video = decode_tiled(vae, inputs["latent"], tiling_of(meta))
    return video_to_frames(video).permute(0, 3, 1, 2) if name == "frames_u8" else video[0].transpose(0, 1)


@pytest.mark.parametrize("case_id", CASES)
def test_equals_reference(golden: Golden, case_id: str) -> None:
    case = golden.case(f"vae/{case_id}")
    vae = load_vae(golden.weights_path(case.config).parent)
    for name, expected in case.outputs.items():
        largest, relative = compare(compute(vae, case.inputs, dict(case.meta), name), expected)
        limits = case.tolerance[name]
        assert largest <= limits.max_abs and relative <= limits.rel_rms, f"{name}: {largest:.2e} {relative:.2e}"
