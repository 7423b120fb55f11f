"""Runs without ComfyUI: made, cancelled, found again, looked at and made again; what clients are told is what is there."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from magi_core.denoise import Progress
from magi_core.errors import MagiError
from magi_core.keeping import Asked, Run
from magi_core.making import Making
from magi_core.run_lock import taken
from magi_core.storyboard import Shot
from nodes.kept import Place, place_of, run_name
from nodes.live import Studio, Words, Work
from nodes.making import lay_out
from nodes.model import MagiModel
from nodes.pace import Pace, Step
from nodes.review import Answer, answer_of
from nodes.runs import About, NotWaiting, Runs, Told
from nodes.settings import Settings, read_settings
from nodes.strips import write_strip
from nodes.text import MagiTextEncoder, encode_prompts
from nodes.timeline import timeline
from nodes.vae import MagiVAE
from tests.nodes.test_making import ONE, TWO, begin, run, spoken

STORY = f"{ONE}\n{TWO}\n1s: it stops"


class Cancelled(Exception):
    """What a host raises to stop a run."""


def nothing(*_: object) -> None:
    """Shows no strip, checks nothing, moves nothing."""


class Film:
    """A run as a node makes it, with what it told."""

    def __init__(
        self, model: MagiModel, clip: MagiTextEncoder, vae: MagiVAE | None, root: Path | None, *, review: int = 0
    ) -> None:
        start = begin(model, clip, STORY)
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.stop_at = -1
        place = Place(root or Path("nowhere"), run_name(start, {}))
        takes = [] if root is None else place.takes()
        kept = None
        if takes:
            place = takes[0]
            kept = Run.open(place.folder)
        elif root is not None:
            kept = Run.create(place.folder, Asked("", "nano"), start)
        making = start if kept is None else kept.load(model.dit)
        plans = dict(start.pending)
        about = About(
            run=place.name,
            node="1",
            prompt_id="p",
            fps=24.0,
            width=64,
            height=64,
            seed=3,
            shots=timeline(plans, 3, 24.0).shots,
            first=0,
            end=3,
            next=making.next_chunk,
            window=4,
            review_every=review,
            previews=vae is not None,
            take=place.take,
        )
        self.told = Runs(lambda name, content: self.sent.append((name, content))).begin(about)
        said, _ = spoken(clip, STORY)
        board = said.board.storyboard
        words = Words(
            lambda text: board.prompt_of(Shot(text, 1.0)), lambda texts: encode_prompts(clip, texts), None, said.tokens
        )
        decode = None if vae is None else vae.decoder(model.config.scale_factor)
        self.ready = 0
        studio = Studio(decode, nothing, self._watch, nothing, Cancelled, self._load, nothing, words, True, review)
        self.work = Work(kept, place, making, self.told, studio, plans, 0, 0)

    def _load(self) -> None:
        self.ready += 1

    def _watch(self, step: Step) -> None:
        if step.step == self.stop_at:
            raise Cancelled

    def shown(self) -> list[int]:
        return [content["chunk"]["index"] for name, content in self.sent if name == "magi.chunk"]


def test_a_cancelled_run_is_found_again_and_finished_to_the_same_bits(
    model: MagiModel, clip: MagiTextEncoder, vae: MagiVAE, tmp_path: Path
) -> None:
    whole = run(begin(model, clip, STORY))
    first = Film(model, clip, vae, tmp_path)
    first.stop_at = 5
    with pytest.raises(Cancelled):
        first.work.make()
    assert first.told.about.state == "stopped" and first.shown() == [0, 1]
    second = Film(model, clip, vae, tmp_path)
    second.work.make()
    assert torch.equal(second.work.latents, whole)
    assert second.shown() == [0, 1, 2] and second.told.about.state == "finished"
    assert second.work.run is not None and len(second.work.run.fragments) == 3
    third = Film(model, clip, vae, tmp_path)
    third.work.make()
    assert torch.equal(third.work.latents, whole)
    assert not [name for name, _ in third.sent if name == "magi.step"], "nothing is made again"


def test_a_run_that_is_not_kept_gives_the_same(model: MagiModel, clip: MagiTextEncoder) -> None:
    film = Film(model, clip, None, None)
    film.work.make()
    assert torch.equal(film.work.latents, run(begin(model, clip, STORY)))
    assert film.shown() == [0, 1, 2]


def test_what_fails_is_told(model: MagiModel, clip: MagiTextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    film = Film(model, clip, None, None)
    monkeypatch.setattr(Making, "step", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        film.work.make()
    assert film.told.about.state == "failed" and "division" in str(film.told.about.error)


def test_a_retry_with_other_words_is_what_those_words_give(
    model: MagiModel, clip: MagiTextEncoder, vae: MagiVAE, tmp_path: Path
) -> None:
    film = Film(model, clip, vae, tmp_path, review=2)
    answers = [Answer("retry", 2, prompt="a blue square"), Answer("approve")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(film.told.desk, "wait", lambda announce, check: answers.pop(0))
        film.work.make()
    other = begin(model, clip, "2s: a blue square\n1s: it stops")
    assert torch.equal(film.work.latents, run(other)), "as if it had been asked for from the start"
    assert film.told.about.take == 2 and [shot.prompt for shot in film.told.about.shots][-1] == "it stops"
    again = Film(model, clip, vae, tmp_path, review=2)
    again.work.make()
    assert torch.equal(again.work.latents, film.work.latents), "the newest take is the run; what was approved stays so"


def test_a_retry_of_a_finished_run_loads_the_model_first_and_is_made_under_its_own_lock(
    model: MagiModel, clip: MagiTextEncoder, tmp_path: Path
) -> None:
    Film(model, clip, None, tmp_path).work.make()
    film = Film(model, clip, None, tmp_path, review=3)
    answers = [Answer("retry", 1), Answer("approve")]
    rewound, loaded, held = Run.rewound, [], []

    def look(run: Run, *asked: Any, **more: Any) -> Making:
        loaded.append(film.ready)
        return rewound(run, *asked, **more)

    def wait(announce: object, check: object) -> Answer:
        assert film.work.run is not None
        held.append((film.work.run.folder.name, taken(film.work.run.folder)))
        return answers.pop(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "rewound", look)
        patch.setattr(film.told.desk, "wait", wait)
        film.work.make()
    name = film.told.about.run
    assert loaded == [1] and held == [(name, True), (f"{name}_2", True)]
    assert not any(taken(tmp_path / folder) for folder, _ in held), "nobody is at them any more"


def test_an_answer_reaches_the_run_that_waits() -> None:
    told = Told(replace(ABOUT, state="paused", next=2), lambda name, content: None)
    with pytest.raises(NotWaiting):
        told.answer({"action": "approve"})
    got: list[Answer] = []
    announced: list[Thread] = []

    def announce() -> None:
        announced.append(Thread(target=told.answer, args=({"action": "stop"},)))
        announced[0].start()

    got.append(told.desk.wait(announce, lambda: None))
    announced[0].join()
    assert got == [Answer("stop")]
    with pytest.raises(MagiError, match="disk"):
        told.answer({"action": "retry"})


ABOUT = About("r", "1", "p", 24.0, 64, 64, 3, (), 0, 4, 0, 4, 0, True)


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ([], "JSON object"),
        ({}, "action"),
        ({"action": "retry", "chunks": 0}, "chunks"),
        ({"action": "retry", "chunks": 3}, "1 to 2"),
        ({"action": "retry", "chunks": True}, "chunks"),
        ({"action": "retry", "seed": 2**64}, "seed"),
        ({"action": "retry", "prompt": 7}, "prompt"),
        ({"action": "retry", "prompt": "\x07"}, "control"),
        ({"action": "approve", "more": 1}, "action"),
        ({"action": ["approve"]}, "action"),
    ],
)
def test_a_wrong_answer_names_what_is_wrong(document: Any, word: str) -> None:
    with pytest.raises(MagiError, match=word):
        answer_of(document, 2)


def test_a_page_that_is_opened_later_knows_what_was_told_and_old_strips_go(tmp_path: Path) -> None:
    sent: list[tuple[str, dict[str, Any]]] = []
    runs = Runs(lambda name, content: sent.append((name, json.loads(json.dumps(content)))))
    for number in range(20):
        runs.begin(replace(ABOUT, run=str(number)))
    assert [told.about.run for told in runs.all()] == [str(number) for number in range(8, 20)]
    told = runs.all()[-1]
    told.change(state="running")
    assert len(sent) == 20, "nothing is said where nothing changed"
    told.change(warning="full")
    assert sent[-1] == ("magi.run", {**json.loads(json.dumps(asdict(told.about)))})
    assert told.document()["chunks"] == [] and told.document()["warning"] == "full"


def test_pace_counts_from_the_runs_start_and_not_through_a_pause() -> None:
    now = [0.0]
    pace = Pace(10, 16, 6.0, lambda: now[0])
    assert pace.step(Progress(10, 30, {})) == Step(0, 20, None, None, ())
    now[0] = 2.0
    step = pace.step(Progress(14, 30, {3: 5}))
    assert (step.step, step.steps, step.seconds_left, step.fps) == (4, 20, 8.0, 12.0)
    assert [asdict(flying) for flying in step.flying] == [{"chunk": 3, "step": 5, "steps": 16}]
    pace.restart()
    now[0] = 1000.0
    assert pace.step(Progress(14, 30, {})).seconds_left is None


def test_a_strip_has_every_frame(tmp_path: Path) -> None:
    frames = np.stack([np.full((40, 80, 3), 10 * number, np.uint8) for number in range(25)])
    strip = write_strip(tmp_path / "a.jpg", frames, 20)
    assert (strip.columns, strip.rows, strip.width, strip.height) == (6, 5, 40, 20)
    picture = np.asarray(Image.open(tmp_path / "a.jpg")).astype(int)
    for number in range(25):
        row, column = divmod(number, 6)
        assert abs(picture[row * 20 + 10, column * 40 + 20] - 10 * number).max() < 4
    with pytest.raises(MagiError, match="cannot write"):
        write_strip(tmp_path / "a.jpg" / "b.jpg", frames, 20)


def test_settings_that_make_no_sense_are_as_by_default(tmp_path: Path) -> None:
    file = tmp_path / "comfy.settings.json"
    assert read_settings(file) == Settings()
    for text in ("{", "[]", '{"MAGI.Preview": "yes", "MAGI.PreviewHeight": null, "MAGI.RunFolderLimit": NaN}'):
        file.write_text(text)
        assert read_settings(file) == Settings()
    file.write_text('{"MAGI.Preview": false, "MAGI.PreviewHeight": 9999, "MAGI.RunFolderLimit": 0.5}')
    assert read_settings(file) == Settings(False, 720, 500_000_000)


def test_names_are_found_again_and_differ_where_the_result_does(
    model: MagiModel, clip: MagiTextEncoder, tmp_path: Path
) -> None:
    name = run_name(begin(model, clip, STORY), {"vae": "a"})
    assert name == run_name(begin(model, clip, STORY), {"vae": "a"})
    assert name.startswith("a-red-circle-moves-right_")
    assert len({name, run_name(begin(model, clip, STORY), {}), run_name(begin(model, clip, ONE), {"vae": "a"})}) == 3
    assert run_name(begin(model, clip, "1s: 红色圆圈"), {}).startswith("video_")
    place = Place(tmp_path, name)
    assert place.next() == place and place_of(place.folder) == place
    place.folder.mkdir()
    second = place.next()
    assert second.take == 2 and place_of(second.folder) == second
    second.folder.with_name(f"{second.folder.name}.mp4").touch()
    assert place.next().take == 3, "the video of a take that was removed keeps its name"
    assert place_of(tmp_path / "session_00001_") is None


def test_shots_and_chunks_lie_in_time(model: MagiModel, clip: MagiTextEncoder) -> None:
    said, _ = spoken(clip, "2s: a\n1.5s: b")
    plans = dict(enumerate(lay_out(model.config, said.board.storyboard, model.config.sampling).chunks, 4))
    times = timeline(plans, 8, 24.0, leading=12)
    assert [(shot.prompt, shot.start, shot.end) for shot in times.shots] == [("a", 0.0, 2.5), ("b", 2.5, 4.0)]
    assert [(n, c.shot, c.start, c.end) for n, c in times.chunks.items()] == [
        (4, 0, 0.0, 1.5),
        (5, 0, 1.5, 2.5),
        (6, 1, 2.5, 3.5),
        (7, 1, 3.5, 4.0),
    ]
