"""A user's whole way with magi-nano: generate, stop, save, extend, start from pictures and clips; and clear refusals."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import magi_core
from magi_core.config import Sampling
from magi_core.cost.memory import Use
from magi_core.errors import MagiError
from magi_core.images import write_png
from magi_core.keeping import Asked, Run
from magi_core.pipeline import Magi, context_frames
from magi_core.retake import reword
from magi_core.tensor_files import read_tensors, write_tensors
from magi_core.vae.chunks import decode_frames
from magi_core.worlds.clips import Clip, Phase, render

STORY = "1s: a red circle moves right\n1s: it turns blue"
LONG = STORY + "\n1s: it moves up\n1s: it stops"


@pytest.fixture(scope="module")
def magi() -> Magi:
    return magi_core.load("nano", device="cpu")


@pytest.fixture(scope="module")
def quick(magi: Magi) -> dict[str, object]:
    """Few steps: what is tested here does not depend on how many."""
    return {"sampling": replace(magi.config.sampling, num_steps=4), "seed": 3}


@pytest.fixture(scope="module")
def long_way(magi: Magi, quick: dict[str, object]) -> list[magi_core.pipeline.Chunk]:
    return list(magi.generate(LONG, **quick))


def joined(chunks: list[magi_core.pipeline.Chunk]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


def test_chunks_come_one_after_the_other_with_what_they_show(long_way: list[magi_core.pipeline.Chunk]) -> None:
    assert [chunk.index for chunk in long_way] == [0, 1, 2, 3]
    assert [chunk.plan.prompt for chunk in long_way][1] == "it turns blue"
    assert joined(long_way).shape == (96, 64, 64, 3) and joined(long_way).dtype == np.uint8


def test_streamed_chunks_decode_as_the_whole(magi: Magi, long_way: list[magi_core.pipeline.Chunk]) -> None:
    latents = torch.cat([chunk.latents for chunk in long_way], dim=2)
    whole = decode_frames(magi.vae, latents, magi.config.scale_factor, magi.tiling)
    assert np.abs(whole.astype(int) - joined(long_way)).max() <= 1


def test_stopped_saved_and_extended_equals_one_go(
    magi: Magi, quick: dict[str, object], long_way: list[magi_core.pipeline.Chunk], tmp_path: Path
) -> None:
    begun = magi.generate(STORY, **quick)
    first = list(begun.chunks(drain=False))
    assert len(first) < 2  # the window is still full
    begun.save(tmp_path / "half.session")
    rest = list(magi.extend(tmp_path / "half.session", LONG.removeprefix(STORY).strip()))
    np.testing.assert_array_equal(joined(first + rest), joined(long_way))


def test_an_interrupted_generation_finishes_to_the_same_bits(
    magi: Magi, quick: dict[str, object], long_way: list[magi_core.pipeline.Chunk], tmp_path: Path
) -> None:
    begun = magi.generate(LONG, **quick)
    first = list(islice(begun, 1))
    while begun.progress.chunks.keys() != {2, 3}:
        first += filter(None, [begun.step()])
    begun.save(tmp_path / "stopped.session")
    rest = list(magi.extend(tmp_path / "stopped.session"))
    np.testing.assert_array_equal(joined(first + rest), joined(long_way))


def test_an_interrupt_while_a_chunk_is_decoded_loses_nothing(
    magi: Magi,
    quick: dict[str, object],
    long_way: list[magi_core.pipeline.Chunk],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    begun = magi.generate(LONG, **quick)
    first = list(islice(begun, 1))
    with monkeypatch.context() as patch:
        patch.setattr("magi_core.pipeline.decode_frames", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(begun)
    begun.save(tmp_path / "decoding.session")
    for rest in (list(magi.extend(tmp_path / "decoding.session")), list(begun)):
        np.testing.assert_array_equal(joined(first + rest), joined(long_way))


def test_a_trimmed_chunk_leaves_no_gap_when_extended(magi: Magi, quick: dict[str, object], tmp_path: Path) -> None:
    short = magi.generate("1.5s: a red circle moves right", **quick)
    first = list(short)
    assert [len(chunk.frames) for chunk in first] == [24, 12]
    short.save(tmp_path / "trimmed.session")
    more = list(magi.extend(tmp_path / "trimmed.session", "1s: it stops"))
    assert [len(chunk.frames) for chunk in more] == [12 + 24]
    untrimmed = list(magi.generate("2s: a red circle moves right", **quick))
    np.testing.assert_array_equal(joined(first + more)[:48], joined(untrimmed))
    cut = first[-1].latents[:, :, 3:]  # a graph keeps latents where we keep frames
    short.making.session.save(tmp_path / "latents.session", notes={"pending": "{}"}, extra={"tail_latents": cut})
    same = list(magi.extend(tmp_path / "latents.session", "1s: it stops"))
    np.testing.assert_array_equal(joined(same), joined(more))


def test_a_long_prompt_is_heard_to_its_end(magi: Magi, quick: dict[str, object]) -> None:
    """Fifty tokens are what the null caption has, not what a prompt may have (the reference cuts at caption_max_length)."""
    words = {
        end: f"one big magenta triangle that is far from the middle {end}" for end in ("moves left", "stands still")
    }
    ways = {end: magi.generate(f"1s: {text}", **quick) for end, text in words.items()}
    captions = {text: caption for text, caption in zip(words.values(), magi.text_encoder.encode([*words.values()]))}
    for end, way in ways.items():
        assert len(way.making.session.state.captions[0]) == len(captions[words[end]]) > 60
    reword(ways["moves left"].making, {0: words["stands still"]}, captions)
    changed, still = (joined(list(ways[end])) for end in words)
    np.testing.assert_array_equal(changed, still)
    cut = magi.generate("1s: " + "a red circle moves right and " * 20, **quick).making.session
    assert len(cut.state.captions[0]) == magi.config.dit.caption_max_length


def test_from_an_image_and_a_keyframe(magi: Magi, quick: dict[str, object], tmp_path: Path) -> None:
    picture = render(Clip("square", 9.0, 0.7, "black", (20.0, 30.0), (Phase("yellow", "still"),)))[0]
    write_png(tmp_path / "square.png", picture)
    moved = next(iter(magi.generate("1s: it moves right", image=picture, **quick)))
    assert np.abs(moved.frames[0].astype(int) - picture).mean() < 12  # the first frame is the picture
    story = "1s: a red circle moves right\n1s: it moves right [image: square.png]"
    shown = list(magi.generate(story, folder=tmp_path, **quick))
    assert np.abs(shown[1].frames[0].astype(int) - picture).mean() < 12


def test_a_clip_of_any_length_is_continued(magi: Magi, quick: dict[str, object]) -> None:
    clip = render(Clip("square", 9.0, 0.7, "black", (50.0, 30.0), (Phase("yellow", "left"),) * 2))
    for frames, first_chunk in ((48, 2), (32, 1), (10, 0), (4, 0)):
        chunks = list(magi.generate("1.5s: it keeps moving left", video=clip[-frames:], **quick))
        assert chunks[0].index == first_chunk
        assert len(joined(chunks)) == 36


@pytest.fixture
def planned(magi: Magi, monkeypatch: pytest.MonkeyPatch) -> list[Use]:
    """What was to be placed on a GPU, without one."""
    seen: list[Use] = []
    dit = magi.dit
    monkeypatch.setattr("magi_core.parts.free_bytes", lambda device: 0)
    monkeypatch.setattr("magi_core.parts.choose_place", lambda use, wanted, free: seen.append(use) or "resident")
    monkeypatch.setattr("magi_core.parts.load_dit", lambda files, **_: dit)
    return seen


def test_the_transformer_is_placed_for_the_video_that_goes_on(
    magi: Magi, quick: dict[str, object], planned: list[Use], tmp_path: Path
) -> None:
    begun = magi.generate(STORY, height=32, width=96, **quick)
    begun.save(tmp_path / "small.session")
    run = Run.create(tmp_path / "small.run", Asked("", "nano"), begun.making)
    for earlier in (tmp_path / "small.session", run.folder):
        assert Magi(magi.files).dit_for(earlier) is magi.dit
    Magi(magi.files).extend(tmp_path / "small.session")
    assert {(use.height, use.width, use.sampling.num_steps) for use in planned} == {(32, 96, 4)}
    run.checkpoints[0].write_bytes(b"")
    with pytest.raises(MagiError, match="no checkpoint that is whole"):
        Magi(magi.files).dit_for(run.folder)


def test_room_is_left_for_the_vae(magi: Magi, planned: list[Use]) -> None:
    assert Magi(magi.files, device="cuda").dit is magi.dit
    with_vae = Magi(magi.files, device="cuda")
    with_vae.vae = magi.vae  # its weights are on the device, and no longer among the free bytes
    assert with_vae.dit is magi.dit
    weights = sum(parameter.nbytes for parameter in magi.vae.parameters())
    decoding = planned[1].beside
    assert decoding > 6 * 64 * 64 * 4 * 3 and planned[0].beside - decoding == pytest.approx(weights, rel=0.2)


def test_a_clips_incomplete_chunk_is_filled_by_other_words_too(
    magi: Magi, quick: dict[str, object], tmp_path: Path
) -> None:
    begun = magi.generate("1s: it stops", video=np.zeros((8, 64, 64, 3), np.uint8), **quick)
    begun.making.rewind(0, lambda number: pytest.fail("nothing was made yet"), keep_plan=False)
    again = magi.extend(begun, "1s: it moves left")
    assert [planned.frames for planned in again.making.pending.values()] == [16, 8]


def test_what_a_video_keeps_is_not_asked_for_anew(magi: Magi, quick: dict[str, object]) -> None:
    begun = magi.generate(STORY, negative=True, **quick)
    magi.extend(begun, seed=3, height=64, negative=True, sampling=quick["sampling"])
    for asked, named in (
        ({"seed": 4}, "seed is 4, but the video was begun with 3"),
        ({"width": 96}, "width is 96, but the video was begun with 64"),
        ({"sampling": magi.config.sampling}, "num_steps is 8, but the video was begun with 4"),
    ):
        with pytest.raises(MagiError, match=named):
            magi.extend(begun, STORY, **asked)
    with pytest.raises(MagiError, match="negative is on"):
        magi.extend(magi.generate(STORY, **quick), negative=True)


def test_8_bits_are_part_of_what_a_video_was_made_with(
    magi: Magi, quick: dict[str, object], planned: list[Use], tmp_path: Path
) -> None:
    magi.generate(STORY, **quick).save(tmp_path / "a.session")
    in_8_bits = Magi(magi.files, fp8=True)
    with pytest.raises(MagiError, match="in the precision of their file, and the model has them quantised to fp8"):
        in_8_bits.extend(tmp_path / "a.session")
    in_8_bits.generate(STORY, **quick).save(tmp_path / "b.session")
    assert in_8_bits.extend(tmp_path / "b.session").making.fp8
    with pytest.raises(MagiError, match=r"fp8=True, or --precision"):
        magi.extend(tmp_path / "b.session")
    header, tensors = read_tensors(tmp_path / "b.session", "magi_session", "session file")
    del header["notes"]["fp8"]
    write_tensors(tmp_path / "b.session", tensors, "magi_session", header)
    assert magi.extend(tmp_path / "b.session").making.fp8 is False, "an earlier version did not say"


def test_as_much_of_a_video_is_read_as_its_continuation_looks_at() -> None:
    assert context_frames(Sampling()) == context_frames(Sampling(noise2clean_kvrange=(2, 2, 2, 2))) == 96
    assert context_frames(Sampling(noise2clean_kvrange=(9, 9, 9, 9))) == 8 * 24
    assert context_frames(Sampling(clean_chunk_kvrange=7)) == 6 * 24
    assert context_frames(Sampling(noise2clean_kvrange=())) > 1_000_000, "all of it"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"height": 65}, "height is 65"),
        ({"width": -16}, "width is -16"),
        ({"seed": -1}, "seed"),
        ({"colour": "red"}, "colour"),
        ({"image": np.zeros((4, 4, 3), np.uint8), "video": np.zeros((24, 4, 4, 3), np.uint8)}, "not both"),
        ({"video": np.zeros((3, 64, 64, 3), np.uint8)}, "at least 4"),
    ],
)
def test_what_does_not_fit_is_named(magi: Magi, changes: dict[str, object], named: str) -> None:
    with pytest.raises(MagiError, match=named):
        magi.generate(STORY, **changes)


def test_the_model_of_another_session_is_refused(magi: Magi, tmp_path: Path) -> None:
    (tmp_path / "no.session").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(MagiError, match=r"no.session"):
        magi.extend(tmp_path / "no.session", STORY)
