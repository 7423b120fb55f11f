"""Frames to video and back."""

import pytest
import torch

from magi_core.errors import MagiError
from magi_core.vae import frames_to_video, video_to_frames


def test_every_value_survives_the_round_trip_within_one_level() -> None:
    frames = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(2, 1, 1, 3)
    video = frames_to_video(frames)
    assert video.shape == (1, 3, 2, 16, 16) and video.min() == -1 and video.max() == 1
    assert (video_to_frames(video).int() - frames.int()).abs().max() <= 1  # truncated, as the reference does


def test_values_are_clamped_and_truncated() -> None:
    video = torch.tensor([-3.0, -1.0, 0.0, 0.99, 1.0, 3.0]).view(1, 1, 1, 1, 6).expand(1, 3, 1, 1, 6)
    assert video_to_frames(video)[0, 0, :, 0].tolist() == [0, 0, 127, 253, 255, 255]


def test_wrong_layouts_are_refused() -> None:
    with pytest.raises(MagiError, match="uint8"):
        frames_to_video(torch.zeros(2, 4, 4, 3))
    with pytest.raises(MagiError, match="uint8"):
        frames_to_video(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(MagiError, match="video must be"):
        video_to_frames(torch.zeros(2, 3, 1, 4, 4))
