"""Between ComfyUI's values and ours: pictures, latents, storyboards with pictures, settings."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magi_core.errors import MagiError
from magi_core.plan import plan
from magi_core.storyboard import Storyboard
from magi_core.text.caption import Caption
from magi_core.text.special_tokens import PromptTokens
from nodes import values

RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)
BLUE = np.full((4, 6, 3), (0, 0, 255), np.uint8)


def board(text: str) -> values.Board:
    return values.Board(Storyboard.from_string(text))


def test_pictures_come_back_as_they_were() -> None:
    frames = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    assert np.array_equal(values.frames_of(values.image_of(frames), "image"), frames)


def test_transparency_is_over_black_and_grey_is_spread() -> None:
    half = torch.ones(1, 2, 2, 4)
    half[..., 3] = 0.5
    assert (values.frames_of(half, "image") == 128).all()
    assert values.frames_of(torch.ones(1, 2, 2, 1), "image").shape == (1, 2, 2, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_pictures_are_refused_by_name(bad: float) -> None:
    with pytest.raises(MagiError, match="start_image holds NaN"):
        values.frames_of(torch.full((1, 2, 2, 3), bad), "start_image")


@pytest.mark.parametrize("shape", [(2, 2, 3), (1, 2, 2, 2), (0, 2, 2, 3), (1, 0, 2, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MagiError, match="image has shape"):
        values.frames_of(torch.zeros(shape), "image")


def test_shots_are_chained_with_their_pictures() -> None:
    one = values.add_shot(None, "a", 1.0, RED)
    two = values.add_shot(one, "b", 2.0, None)
    three = values.add_shot(two, "c", 1.0, BLUE)
    assert [shot.prompt for shot in three.storyboard.shots] == ["a", "b", "c"]
    assert three.images.keys() == {0, 2} and three.images[2] is BLUE
    assert len(one.storyboard.shots) == 1, "a value on a socket never changes"


def test_a_keyframe_within_a_shot_cuts_it() -> None:
    cut = board("4s: a\n2s: b").with_keyframe(RED, 3.0)
    assert [(shot.prompt, shot.seconds) for shot in cut.storyboard.shots] == [("a", 3.0), ("a", 1.0), ("b", 2.0)]
    chunks = plan(cut.storyboard).chunks
    assert [chunk.index for chunk in chunks if chunk.keyframe] == [3]
    assert cut.with_keyframe(BLUE, 4.0).images.keys() == {1, 2}


@pytest.mark.parametrize(
    ("text", "second", "shots", "chunk"),
    [
        ("2s: a\n2s: b", 0.4, [2.0, 2.0], 0),
        ("2s: a\n2s: b", 1.6, [2.0, 2.0], 2),
        ("2s: a\n2s: b", 2.4, [2.0, 2.0], 2),
        ("2s: a\n2s: b", 3.9, [2.0, 1.0, 1.0], 3),
        ("1s: a\n1s: b", 0.5, [1.0, 1.0], 1),
        ("1.3s: a\n1.3s: b", 1.0, [1.3, 1.3], 1),
    ],
)
def test_a_keyframe_is_held_at_the_nearest_whole_second(
    text: str, second: float, shots: list[float], chunk: int
) -> None:
    after = board(text).with_keyframe(RED, second).storyboard
    assert [shot.seconds for shot in after.shots] == shots
    assert [part.index for part in plan(after).chunks if part.keyframe] == [chunk]


@given(
    st.lists(st.sampled_from([0.2, 0.5, 1.0, 1.3, 2.0, 5.0]), min_size=1, max_size=6),
    st.floats(0, 1, exclude_max=True),
)
def test_a_keyframe_keeps_length_and_words(lengths: list[float], place: float) -> None:
    story = board("\n".join(f"{seconds}s: shot {i}" for i, seconds in enumerate(lengths)))
    second = round(place * story.storyboard.seconds, 3)
    if second >= story.storyboard.seconds:
        return
    after = story.with_keyframe(RED, second)
    before, now = plan(story.storyboard), plan(after.storyboard)
    assert (now.frames, now.prompts) == (before.frames, before.prompts)
    (shot,) = after.images
    assert [chunk.index for chunk in now.chunks if chunk.keyframe] == [
        min(int(second + 0.5), len(before.chunks) - 1)
    ] and after.storyboard.shots[shot].keyframe


@pytest.mark.parametrize("second", [-1.0, 6.0, 1e9, float("nan")])
def test_a_keyframe_outside_is_refused(second: float) -> None:
    with pytest.raises(MagiError, match="second is"):
        board("4s: a\n2s: b").with_keyframe(RED, second)


def test_conditioning_carries_the_storyboard() -> None:
    said = values.Said(board("1s: a\n1s: b"), PromptTokens(), False)
    captions = [Caption(torch.randn(3, 8), torch.ones(3, dtype=torch.bool)) for _ in range(2)]
    conditioning = values.conditioning_of(captions, said)
    assert conditioning[0][0].shape == (1, 3, 8) and conditioning[0][1]["attention_mask"].shape == (1, 3)
    back, again = values.captions_of(conditioning, 8, 4.0)
    assert back is said and torch.equal(again[1].embedding, captions[1].embedding)


def core_conditioning(**extra: object) -> list[list[object]]:
    """One prompt as core's CLIP Text Encode gives it: two tokens, padded to three."""
    return [
        [torch.arange(24.0).view(1, 3, 8), {"attention_mask": torch.tensor([[1, 1, 0]]), "pooled_output": None} | extra]
    ]


def test_cores_conditioning_is_one_prompt_for_some_seconds() -> None:
    said, (caption,) = values.captions_of(core_conditioning(), 8, 2.5)
    assert said.board.storyboard.seconds == 2.5 and not said.negative
    assert torch.equal(caption.embedding, torch.arange(16.0).view(2, 8))


@pytest.mark.parametrize(
    ("foreign", "channels", "message"),
    [
        ([], 8, "0 entries"),
        (core_conditioning() * 2, 8, "2 entries.*combines no prompts"),
        (core_conditioning(attention_mask=None), 8, "does not mask.*mochi"),
        (core_conditioning(), 16, "8 wide, the model reads 16"),
    ],
)
def test_conditioning_that_cannot_be_read(foreign: list[object], channels: int, message: str) -> None:
    with pytest.raises(MagiError, match=message):
        values.captions_of(foreign, channels, 4.0)


def test_the_end_of_a_clip_at_another_rate() -> None:
    images = torch.linspace(0, 1, 120)[:, None, None, None].expand(120, 2, 2, 3)
    at_30 = values.last_frames(images, Fraction(30), 24, 48, "video")
    assert at_30.shape == (48, 2, 2, 3)
    assert at_30[-1, 0, 0, 0] >= 253, "the clip's end is the end"
    assert values.last_frames(images, 24, 24, 96, "video").shape[0] == 96
    assert values.last_frames(images[:5], 24, 24, 96, "video").shape[0] == 5


def test_latents_are_scaled_and_checked() -> None:
    samples = torch.randn(1, 16, 6, 8, 8)
    assert torch.equal(values.latents_of({"samples": samples}, 16, 0.5, "latent"), samples * 0.5)
    for bad in (torch.randn(1, 4, 8, 8), torch.randn(2, 16, 6, 8, 8), torch.randn(1, 4, 6, 8, 8), None):
        with pytest.raises(MagiError, match="latent is"):
            values.latents_of({"samples": bad}, 16, 1.0, "latent")
    with pytest.raises(MagiError, match="NaN"):
        values.latents_of({"samples": samples * float("nan")}, 16, 1.0, "latent")


@pytest.mark.parametrize(("width", "height"), [(8, 64), (65, 64), (64, 16), (-16, 64), (8208, 64), (64, 1)])
def test_sizes_that_do_not_fit(width: int, height: int) -> None:
    with pytest.raises(MagiError, match="multiple of 16"):
        values.check_size(width, height)


def test_a_size_that_is_no_number() -> None:
    with pytest.raises(MagiError, match="whole number"):
        values.check_size("wide", 64)  # type: ignore[arg-type]


def test_sizes_that_fit() -> None:
    for size in ((0, 0), (64, 0), (720, 1280), (32, 8192)):
        values.check_size(*size)
