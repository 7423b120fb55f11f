"""Runs on disk: broken off anywhere they end in the same bytes; damage is noticed; full disks; other takes; how large they are."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

import magi_core
from magi_core import run_lock
from magi_core.denoise import Session
from magi_core.errors import MagiError
from magi_core.files import atomic_write
from magi_core.keeping import Asked, Run
from magi_core.kept_bytes import kept_bytes
from magi_core.kept_chunks import read_chunk
from magi_core.live import Live, LiveChunk, produce
from magi_core.making import Making
from magi_core.model import MagiDiT
from magi_core.run_folders import prune, runs
from magi_core.tensor_files import read_tensors, write_tensors
from magi_core.video import read_metadata, read_video
from tests.tiny_run import CHUNKS, SAMPLING, SIDE, add, asked, begin, content, decode, make, make_or_go_on, model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dit() -> MagiDiT:
    return model()


@pytest.fixture(scope="module")
def alone(dit: MagiDiT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    make_or_go_on(dit, folder)
    return folder


def broken_off(dit: MagiDiT, folder: Path, chunks: int) -> Run:
    """A run with so many chunks."""
    making = begin(dit)
    run = Run.create(folder, asked(), making)
    with Live(decode, run=run) as live:
        list(islice(produce(making, run=run, live=live), chunks))
    return run


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_killed_at_fifty_random_moments_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    killer = [sys.executable, str(ROOT / "tests" / "tiny_run.py"), str(tmp_path), "50", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(killer, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_a_finished_run_has_everything(alone: Path) -> None:
    run = Run.open(alone)
    assert run.finished and run.done == CHUNKS == len(run.fragments)
    assert len(run.checkpoints) == 3
    assert len(read_video(run.video)) == round(5.4 * 24)
    assert read_metadata(run.video) == {"prompt": "{}"}
    assert [run.chunk(index).frames for index in range(CHUNKS)] == [fragment.frames for fragment in run.fragments]
    run.export(alone.with_name("whole.mp4"))
    assert (read_video(alone.with_name("whole.mp4")) == read_video(run.video)).all()


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    dit: MagiDiT, alone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = broken_off(dit, tmp_path / "run", 3)
    assert run.load(dit).next_chunk == 3 and not caplog.records
    for number, path in enumerate(reversed(run.checkpoints)):
        flip(path, path.stat().st_size // 2)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            if path == run.checkpoints[0]:
                with pytest.raises(MagiError, match="no checkpoint that is whole"):
                    run.load(dit)
            else:
                assert run.load(dit).next_chunk == (2, 0)[number]
        assert str(path) in caplog.text
    broken_off(dit, tmp_path / "again", 3)
    flip(Run.open(tmp_path / "again").checkpoints[-1], 5000)
    make_or_go_on(dit, tmp_path / "again")
    assert content(tmp_path / "again") == content(alone)


def test_a_damaged_chunk_that_the_video_lacks_is_made_again(dit: MagiDiT, alone: Path, tmp_path: Path) -> None:
    run = broken_off(dit, tmp_path / "run", 3)
    run.video.write_bytes(run.video.read_bytes()[:-5])
    flip(run.folder / "chunks" / "000002.safetensors", 1000)
    with pytest.raises(MagiError, match=r"000002.safetensors is damaged"):
        run.chunk(2)
    make_or_go_on(dit, run.folder)
    assert content(run.folder) == content(alone)


def test_a_chunk_of_a_newer_version_says_so(alone: Path, tmp_path: Path) -> None:
    path = tmp_path / "000000.safetensors"
    for version, says in ((99, "of a newer version; update"), ("2", "is damaged")):
        write_tensors(path, {}, "magi_chunk", {"version": version})
        with pytest.raises(MagiError, match=says):
            read_chunk(path)
    header, tensors = read_tensors(alone / "chunks" / path.name, "magi_chunk", "chunk file")
    write_tensors(path, tensors, "magi_chunk", {**header, "version": 1})
    assert read_chunk(path).index == 0


def test_what_a_kill_left_of_a_file_is_removed(dit: MagiDiT, alone: Path, tmp_path: Path) -> None:
    run = broken_off(dit, tmp_path / "run", 2)
    halves = [run.folder / "chunks" / ".000002-0a.safetensors", run.folder / "checkpoints" / ".000003-0a.session"]
    for half in halves:
        half.write_bytes(b"half")
    make_or_go_on(dit, run.folder)
    assert content(run.folder) == content(alone) and not any(half.exists() for half in halves)
    building, other = (tmp_path / f".{name}-{'0a' * 16}" for name in ("take", "take-b"))
    for folder in (building, other):
        (folder / "chunks").mkdir(parents=True)
    run.fork(tmp_path / "take", run.asked, run.rewound(dit, 1))
    assert not building.exists() and other.exists()


def test_what_cannot_be_gone_on_with_is_refused_by_name(dit: MagiDiT, alone: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        other = MagiDiT(dit.config)
    with pytest.raises(MagiError, match="another model"):
        Run.open(alone).load(other)
    with pytest.raises(MagiError, match=r"there is no run in .*run.json"):
        Run.open(tmp_path)
    about = (alone / "run.json").read_text()
    for damaged in (about.replace('"first": 0', '"first": 1'), about[:-3], "[]", '{"sha256": 0}'):
        (tmp_path / "run.json").write_text(damaged)
        with pytest.raises(MagiError, match=r"run.json"):
            Run.open(tmp_path)
    assert runs(tmp_path.parent) == [] or all(run.folder != tmp_path for run in runs(tmp_path.parent))
    with pytest.raises(MagiError, match="not an empty folder"):
        Run.create(alone, asked(), begin(dit))


class Stop(Exception):
    """What a host raises to interrupt."""


def test_an_interrupt_between_two_chunks_repeats_no_step(dit: MagiDiT, alone: Path, tmp_path: Path) -> None:
    making = begin(dit)
    run = Run.create(tmp_path / "run", asked(), making)

    def watch(progress: object) -> None:
        if making.progress.steps == 5:
            raise Stop

    with pytest.raises(Stop), Live(decode, run=run) as live:
        for _ in produce(making, run=run, live=live, watch=watch):
            pass
    assert len(run.fragments) == run.done == 1
    going_on = Run.open(run.folder).load(dit)
    assert going_on.progress.steps == 5
    make(run, going_on)
    assert content(run.folder) == content(alone)


def test_an_interrupt_right_after_a_chunk_became_clean_loses_nothing(
    dit: MagiDiT, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, step = begin(dit), Session.step

    def broken_off(session: Session, *, drain: bool = True) -> None:
        if step(session, drain=drain) is not None:
            raise KeyboardInterrupt

    for chunk in range(CHUNKS):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Session, "step", broken_off)
            list(making.chunks())
        assert making.next_chunk == chunk and not making.finished()
        making.save(tmp_path / "now.session")
        again = Making.load(tmp_path / "now.session", dit).step(lambda finished: finished)
        finished = making.step(lambda finished: finished)
        assert finished is not None and again is not None
        kept = Run.open(alone).chunk(chunk)
        for one in (finished, again):
            assert (one.index, one.plan) == (kept.index, kept.plan) and len(one.spans) == len(kept.spans)
            for span, wanted in zip(one.spans, kept.spans, strict=True):
                assert (span.first, span.frames) == (wanted.first, wanted.frames)
                assert torch.equal(span.latents, wanted.latents)
    assert making.finished()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[bool]]:
    """A list whose one entry says whether nothing more can be written."""
    full = [False]
    sync = os.fsync

    def failing(handle: int) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    yield full


@pytest.mark.parametrize("until", [3, CHUNKS + 1])
def test_a_full_disk_is_said_once_and_nothing_is_lost(
    dit: MagiDiT, alone: Path, tmp_path: Path, full_disk: list[bool], until: int, caplog: pytest.LogCaptureFixture
) -> None:
    making, seen = begin(dit), []
    run = Run.create(tmp_path / "run", asked(), making)
    with Live(decode, run=run, on_chunk=seen.append) as live:
        for finished in produce(making, run=run, live=live):
            while len(seen) <= finished.index:
                time.sleep(0.001)  # until it is shown, so that the disk is full for the same chunks of both threads
            full_disk[0] = finished.index + 1 < until
            if finished.index == 1:
                files = {path for path in run.folder.rglob("*") if path.is_file()}
                assert all(not path.name.startswith(".") for path in files), "half a file is left"
    if until > CHUNKS:
        assert run.problem and live.problem
        assert "No space left" in str(run.problem) and "Free space" in str(run.problem)
        full_disk[0] = False
        run.save(making)
        make(run, making)
    assert run.problem is None
    assert caplog.text.count("stays in memory") == 1 and caplog.text.count("its file is completed") == 1
    assert [chunk.index for chunk in seen if isinstance(chunk, LiveChunk)] == list(range(CHUNKS))
    assert content(run.folder) == content(alone)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused_at_once(dit: MagiDiT, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MagiError, match="cannot keep a run"):
        Run.create(tmp_path / "run", asked(), begin(dit))


def test_where_no_folder_can_be_nothing_is_left(dit: MagiDiT, tmp_path: Path, full_disk: list[bool]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MagiError, match="cannot keep a run"):
        Run.create(tmp_path / "file" / "run", asked(), begin(dit))
    full_disk[0] = True
    with pytest.raises(MagiError, match="No space left"):
        Run.create(tmp_path / "run", asked(), begin(dit))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_take_begins_with_the_same_chunks(dit: MagiDiT, alone: Path, tmp_path: Path) -> None:
    run, before = Run.open(alone), content(alone)
    other = run.rewound(dit, 2, seed=9)
    take = run.fork(tmp_path / "take", run.asked, other)
    assert (take.done, len(take.fragments), take.finished) == (2, 2, False)
    make(take, other)
    made = content(take.folder)
    assert made.keys() == before.keys() and content(alone) == before
    same = [name for name in made if made[name] == before[name]]
    assert same == ["000000.safetensors", "000001.safetensors"]
    cut = take.fragments[1].offset + take.fragments[1].size
    assert take.video.read_bytes()[:cut] == run.video.read_bytes()[:cut]

    # It is what a new session makes that is given those two chunks as a prefix.
    prefix = torch.cat([run.chunk(index).latents for index in (0, 1)], dim=2)
    fresh = begin(dit, "1s: c\n2.4s: d", seed=9, prefix=prefix)
    for finished in fresh.chunks():
        assert torch.equal(finished.latents, take.chunk(finished.index).latents)

    # A take can be broken off, and gone back in as far as it went by itself.
    assert Run.open(take.folder).load(dit).finished()
    assert take.rewound(dit, 3).next_chunk == 3
    for chunk in (1, 7):
        with pytest.raises(MagiError, match=f"chunk is {chunk}"):
            take.rewound(dit, chunk)


def test_other_words_from_a_chunk_on(dit: MagiDiT, alone: Path, tmp_path: Path) -> None:
    run = Run.open(alone)
    other = run.rewound(dit, 1, keep_plan=False)
    add(other, "2s: z")
    take = run.fork(tmp_path / "take", run.asked, other)
    make(take, other)
    assert take.finished and take.end == 3 and len(read_video(take.video)) == 72
    assert take.chunk(1).plan.prompt == "z"


def test_other_words_in_the_chunk_that_a_clip_begins(dit: MagiDiT, tmp_path: Path) -> None:
    making = Making.start(dit, SAMPLING, height=SIDE, width=SIDE, seed=1, prefix=torch.randn(1, 3, 2, SIDE, SIDE))
    add(making, "1s: a", making.held_frames)
    run = Run.create(tmp_path / "run", asked(), making)
    make(run, making)
    other = run.rewound(dit, 0, keep_plan=False)
    with pytest.raises(MagiError, match=r"16 more belong to it; 24 are planned: plan with prefix_frames=8"):
        add(other, "1s: z")
    add(other, "1s: z", other.held_frames)
    take = run.fork(tmp_path / "take", run.asked, other)
    make(take, other)
    assert [take.chunk(index).frames for index in range(2)] == [16, 8] == [f.frames for f in take.fragments]


def test_frames_cut_off_are_shown_by_an_extension_and_after_going_back(
    dit: MagiDiT, alone: Path, tmp_path: Path
) -> None:
    run = Run.open(alone)
    making = run.load(dit)
    add(making, "2s: e")
    more = Run.create(tmp_path / "more", asked(), making)
    make(more, making)
    assert [fragment.frames for fragment in more.fragments] == [14 + 24, 24]
    again = more.rewound(dit, 6)
    assert [finished.frames for finished in again.chunks()] == [14 + 24, 24]
    assert Making.load(more.checkpoints[-1], dit).unshown == ()


def test_a_run_that_leaves_chunks_in_flight_is_finished_where_they_begin(dit: MagiDiT, tmp_path: Path) -> None:
    making = begin(dit, "5s: a")
    run = Run.create(tmp_path / "run", asked(drain=False), making)
    make(run, making)
    assert run.finished and run.done == run.end == 4 and making.progress.chunks
    add(making, "1s: b")
    more = Run.create(tmp_path / "more", asked(), making)
    make(more, making)
    whole = begin(dit, "5s: a\n1s: b")
    for finished in whole.chunks():
        kept = (run if finished.index < 4 else more).chunk(finished.index)
        assert torch.equal(kept.latents, finished.latents)


def test_a_run_that_began_with_chunks_in_flight_can_be_gone_back_to_its_first(dit: MagiDiT, tmp_path: Path) -> None:
    making = begin(dit, "8s: a")
    before = list(making.chunks(drain=False))
    add(making, "1s: b")
    run = Run.create(tmp_path / "run", asked(), making)
    make(run, making)
    assert run.first == len(before) == 7
    for chunk in range(run.first, run.end):
        again = run.rewound(dit, chunk, seed=9)
        clean = [(before[n] if n < run.first else run.chunk(n)).latents for n in range(chunk)]
        words = f"{8 - chunk}s: a\n1s: b" if chunk < 8 else "1s: b"
        fresh = begin(dit, words, seed=9, prefix=torch.cat(clean, dim=2))
        for one, two in zip(again.chunks(), fresh.chunks(), strict=True):
            assert torch.equal(one.latents, two.latents)


def test_a_run_is_made_by_one_process_at_a_time(alone: Path) -> None:
    with run_lock.alone(alone):
        with pytest.raises(MagiError, match="another process"), run_lock.alone(alone):
            pass
        waits = f"from magi_core.run_lock import alone\nwith alone(__import__('pathlib').Path({str(alone)!r})): pass"
        other = subprocess.run([sys.executable, "-c", waits], capture_output=True, text=True)
        assert "is being made by another process" in other.stderr
    with run_lock.alone(alone), run_lock.alone(alone / "not there"):
        pass


def test_old_finished_runs_are_removed_and_unfinished_ones_never(dit: MagiDiT, alone: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b", "c")):
        run = Run.open(alone).fork(tmp_path / name, asked(), Run.open(alone).rewound(dit, 5))
        if name != "b":
            make(run, run.load(dit))
        for part in ("run.json", "chunks", "checkpoints"):
            os.utime(tmp_path / name / part, (number, number))
    assert [run.folder.name for run in runs(tmp_path)] == ["c", "b", "a"]
    one, film = runs(tmp_path)[0].nbytes, (tmp_path / "a" / "video.mp4").read_bytes()
    assert prune(tmp_path, 10 * one) == []
    with run_lock.alone(tmp_path / "a"), run_lock.alone(tmp_path / "c"):
        assert prune(tmp_path, 0) == [], "somebody is at them"
    assert [path.name for path in prune(tmp_path, 2 * one)] == ["a"]
    assert (tmp_path / "a.mp4").read_bytes() == film
    assert [path.name for path in prune(tmp_path, 0)] == ["c"]
    assert [run.folder.name for run in runs(tmp_path)] == ["b"]
    with pytest.raises(MagiError, match="max_bytes"):
        prune(tmp_path, -1)


def test_a_run_of_which_a_part_is_gone_is_listed_and_the_others_are_still_removed(
    dit: MagiDiT, alone: Path, tmp_path: Path
) -> None:
    for name in ("part", "whole"):
        make(run := Run.open(alone).fork(tmp_path / name, asked(), Run.open(alone).rewound(dit, 5)), run.load(dit))
    shutil.rmtree(tmp_path / "part" / "checkpoints")
    shutil.rmtree(tmp_path / "part" / "chunks")
    (tmp_path / "part" / "gone").symlink_to("nowhere")
    assert {run.folder.name for run in runs(tmp_path)} == {"part", "whole"}
    assert all(run.changed and run.nbytes for run in runs(tmp_path))
    (tmp_path / "whole.mp4").write_text("another film of that name")
    film = (tmp_path / "whole" / "video.mp4").read_bytes()
    assert [path.name for path in prune(tmp_path, 0)] == ["whole"]
    assert (tmp_path / "whole.mp4").read_text() == "another film of that name"
    assert (tmp_path / "whole (2).mp4").read_bytes() == film
    shutil.rmtree(tmp_path / "part")
    assert runs(tmp_path) == []


def test_magi_nanos_files_are_as_large_as_said(tmp_path: Path) -> None:
    magi = magi_core.load("nano", device="cpu")
    making = magi.generate("9s: a red circle moves right", seed=1).making
    run = Run.create(tmp_path / "run", Asked("", "nano"), making)
    at_chunks, between = [], []
    for finished in making.chunks(watch=lambda progress: _note(making, tmp_path, between)):
        run.keep(finished, making)
        at_chunks.append(run.checkpoints[-1].stat().st_size)
        if finished.index == 4:
            break
    captions = making.session.state.captions.values()
    tokens = max(len(caption) for caption in captions)
    said = kept_bytes(magi.config, 64, 64, captions=1, tokens=tokens)
    header = 8_000
    assert 0 <= (run.folder / "chunks" / "000003.safetensors").stat().st_size - said.chunk < header
    assert said.checkpoint * 0.8 < max(at_chunks) < said.checkpoint + header
    assert said.longest_checkpoint * 0.8 < max(between) < said.longest_checkpoint + header
    assert max(at_chunks[3:]) - min(at_chunks[3:]) < header, "they do not grow with the video"


def _note(making: Making, folder: Path, sizes: list[int]) -> None:
    with atomic_write(folder / "now.session") as path:
        making.save(path)
        sizes.append(path.stat().st_size)


def test_the_documented_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = (ROOT / "docs" / "keeping.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    exec(compile(code, "keeping.md", "exec"), {})  # noqa: S102 - our own document
    assert "4 of 4 finished" in capsys.readouterr().out
    assert len(read_video(Path("out/circle.mp4"))) == 96
