"""A folder of videos as training clips: what is read, what is remade, what is left out and said."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from magi_core.errors import MagiError
from magi_core.pipeline import Magi, load
from magi_core.training.dataset import ClipSet, Mix, draw_sample
from magi_core.training.objective import LAYOUTS
from magi_core.training.videos import NO_CAPTION, Encoding, captions_of, find_videos, open_videos, read_captions
from magi_core.video import VideoWriter

pytest.importorskip("av")


def write_video(path: Path, frames: int, captions: str | None = None, fps: int = 24, seed: int = 0) -> None:
    """A square of a seed's colour that moves a pixel a frame."""
    pictures = np.zeros((frames, 48, 80, 3), np.uint8)
    colour = np.random.default_rng(seed).integers(80, 255, 3)
    for number, picture in enumerate(pictures):
        picture[10:26, 20 + number % 24 : 36 + number % 24] = colour
    with VideoWriter(path, fps=fps) as writer:
        writer.append(pictures)
    if captions is not None:
        path.with_suffix(".txt").write_text(captions, encoding="utf-8")


@pytest.fixture(scope="module")
def magi() -> Magi:
    return load("nano", device="cpu")


def open_folder(folder: Path, magi: Magi, side: int = 32) -> ClipSet:
    encoding = Encoding(magi.vae, magi.tiling, magi.config.scale_factor, (side, side))
    return open_videos(folder, encoding, magi.text_encoder, magi.special_tokens, folder / "cache")


def test_videos_of_different_lengths_and_rates_become_clips(tmp_path: Path, magi: Magi) -> None:
    write_video(tmp_path / "a.mp4", 60, "a red square\nit moves right")
    write_video(tmp_path / "b.mp4", 40, "a ball\n\n", fps=12, seed=1)
    clips = open_folder(tmp_path, magi)
    assert clips.lengths.tolist() == [2, 2, 2, 2, 3, 3, 3, 3]
    assert clips.image.tolist() == [False, False, False, True] * 2
    assert clips.latents[0].shape == (2, 16, 6, 4, 4) and clips.latents[0].dtype == torch.float16
    assert clips.wording[0].tolist() == [[0, 1]] and clips.wording[4].tolist() == [[2, NO_CAPTION, NO_CAPTION]]
    own = magi.text_encoder.encode(["it moves right"])[0]
    torch.testing.assert_close(clips.captions[1].embedding.float(), own.embedding, rtol=1e-3, atol=1e-3)
    still = magi.encode(_first_frame(tmp_path / "a.mp4"), 32, 32, "crop")[0, :, 0]
    torch.testing.assert_close(clips.latents[3][0, :, 0].float(), still, rtol=2e-2, atol=2e-2)


def _first_frame(path: Path) -> np.ndarray:
    from magi_core.video import read_video

    return read_video(path, first=1)


def test_every_layout_draws_from_videos_that_are_long_enough(tmp_path: Path, magi: Magi) -> None:
    write_video(tmp_path / "a.mp4", 24, "one\n")
    write_video(tmp_path / "b.mp4", 72, "", seed=1)
    clips = open_folder(tmp_path, magi)
    generator = torch.Generator().manual_seed(0)
    sample = draw_sample(clips, LAYOUTS["behind"], 8, Mix(null_caption=0.0), generator)
    assert sample.null.all(), "the long video has no caption"
    long = [i for i in range(len(clips)) if clips.lengths[i] == 3]
    chunk = sample.latents[:, :, 6:12]
    assert all(any(torch.equal(chunk[n], clips.latents[i][1].float()) for i in long) for n in range(8))
    told = draw_sample(clips, LAYOUTS["first"], 32, Mix(null_caption=0.0), generator).null
    assert told.any() and not told.all()
    with pytest.raises(MagiError, match="no clip has the 4 chunks"):
        draw_sample(
            ClipSet(clips.latents[:4], clips.image[:4], clips.wording[:4], clips.captions, None),
            LAYOUTS["start"],
            1,
            Mix(),
            generator,
        )


def test_a_long_name_is_a_name(tmp_path: Path, magi: Magi) -> None:
    write_video(tmp_path / "a.mp4", 24, "a")
    for suffix in (".mp4", ".txt"):
        (tmp_path / f"a{suffix}").rename(tmp_path / f"{'猫' * 80}{suffix}")  # 244 bytes; file names have at most 255
    assert len(open_folder(tmp_path, magi)) == len(open_folder(tmp_path, magi)) == 4


def test_only_what_changed_is_encoded_again(tmp_path: Path, magi: Magi, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write_video(tmp_path / f"{name}.mp4", 24, name, seed=seed)
    encoded: list[str] = []
    from magi_core.training import videos

    encode = videos._encode
    monkeypatch.setattr(videos, "_encode", lambda path, *rest: (encoded.append(path.name), encode(path, *rest))[1])
    first = [latents.clone() for latents in open_folder(tmp_path, magi).latents]
    assert encoded == ["a.mp4", "a.mp4", "b.mp4", "b.mp4"]
    write_video(tmp_path / "b.mp4", 24, seed=2)
    (tmp_path / "a.txt").write_text("another caption", encoding="utf-8")
    encoded.clear()
    second = open_folder(tmp_path, magi)
    assert encoded == ["b.mp4", "b.mp4"]
    assert torch.equal(first[0], second.latents[0]) and not torch.equal(first[4], second.latents[4])
    del second
    broken = tmp_path / "cache" / "a.mp4.safetensors"
    broken.write_bytes(broken.read_bytes()[:999])
    assert torch.equal(open_folder(tmp_path, magi).latents[0], first[0])
    encoded.clear()
    assert open_folder(tmp_path, magi, side=48).latents[0].shape[-1] == 6 and len(encoded) == 4


def test_what_cannot_be_used_is_left_out_and_said(tmp_path: Path, magi: Magi, caplog: pytest.LogCaptureFixture) -> None:
    write_video(tmp_path / "good.mp4", 24, "a square\nunused\n")
    write_video(tmp_path / "short.mp4", 20, "a square")
    write_video(tmp_path / "silent.mp4", 24)
    write_video(tmp_path / "latin.mp4", 24)
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:700])
    (tmp_path / "broken.txt").write_text("a square", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        clips = open_folder(tmp_path, magi)
    assert len(clips) == 4
    said = caplog.text
    for part in (
        "short.mp4 is shorter than a second",
        "silent.txt are missing; write one line",
        "latin.txt are no UTF-8 text",
        "broken.mp4' cannot be read",
        "good.txt has 2 lines, but good.mp4 only 1 whole seconds",
        "4 of 5 videos were left out: broken.mp4, latin.mp4, short.mp4, silent.mp4",
    ):
        assert part in said, part
    for name in ("good.mp4", "good.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(MagiError, match="none of the 4 videos"):
        open_folder(tmp_path, magi)


def test_folders_and_sizes_that_cannot_be_used_are_named(tmp_path: Path, magi: Magi) -> None:
    with pytest.raises(MagiError, match="is no folder"):
        find_videos(tmp_path / "absent")
    with pytest.raises(MagiError, match="holds no videos"):
        find_videos(tmp_path)
    for suffix in (".mp4", ".mov"):
        (tmp_path / f"cat{suffix}").touch()
    with pytest.raises(MagiError, match=r"share cat\.txt"):
        find_videos(tmp_path)
    with pytest.raises(MagiError, match="try 48"):
        open_folder(tmp_path, magi, side=50)


def test_the_last_line_holds_and_an_empty_one_is_no_caption(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbf a cat \r\n\r\nit jumps")
    lines = read_captions(file)
    assert captions_of(lines, 5) == ["a cat", "", "it jumps", "it jumps", "it jumps"]
    assert captions_of(lines, 1) == ["a cat"] and captions_of([], 2) == ["", ""]
