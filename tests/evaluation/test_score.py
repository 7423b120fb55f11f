"""The scorer is proven with models whose figures are known: the truth itself, a frozen picture, and deliberate mistakes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from magi_core.errors import MagiError
from magi_core.evaluation.cases import Case, Request, build_cases
from magi_core.evaluation.generator import generator_of
from magi_core.evaluation.intervals import Median, Share
from magi_core.evaluation.report import write_report
from magi_core.evaluation.score import Scores, ScoreSettings, measure, score
from magi_core.presets import PRESETS
from magi_core.worlds.captions import WORDINGS
from magi_core.worlds.clips import CHUNK_FRAMES, NARROW, Clip, Phase, render
from magi_core.worlds.shapes import Frames

SMALL = ScoreSettings(count=12, samples=2, batch=5)


class Oracle:
    """A model that knows the answers; ``spoil`` turns them into mistakes."""

    def __init__(self, settings: ScoreSettings, spoil=lambda case, frames: frames) -> None:
        cases = (build_cases(settings.world, task, settings.count, settings.seed) for task in settings.tasks)
        self.cases = {case.request.seed: case for group in cases for case in group}
        self.spoil = spoil

    def __call__(self, requests: Sequence[Request]) -> list[Frames]:
        assert len({(len(r.prompts), r.image is None, r.prefix is None) for r in requests}) == 1
        cases = [self.cases[request.seed] for request in requests]
        return [self.spoil(case, render(case.clip)[case.given * CHUNK_FRAMES :]) for case in cases]


@pytest.fixture(scope="module")
def perfect() -> Scores:
    return score(Oracle(SMALL), SMALL)


def test_the_truth_scores_full_marks(perfect: Scores) -> None:
    for row in perfect.shares:
        for share in (row.colour, row.shape, row.direction, row.strict):
            assert share.right == share.total
    assert perfect.shares[0].colour.total == 12 and perfect.shares[1].colour.total == 24
    assert max(median.value for row in perfect.errors for median in row.model) < 0.1
    assert perfect.whole == Share(36, 36) and perfect.wraps == Share(0, 36)


def test_the_truth_of_the_full_world_scores_full_marks() -> None:
    settings = ScoreSettings(world="full", count=9)
    for row in score(Oracle(settings), settings).shares:
        assert row.direction.right == row.direction.total and row.shape.right == row.shape.total


def test_the_baselines_fail_where_physics_matters(perfect: Scores) -> None:
    rows = {row.name: row.baselines for row in perfect.errors}
    assert rows["still"]["last frame frozen"][2].value == 0
    assert rows["slide"]["constant velocity"][0].value < rows["slide"]["last frame frozen"][0].value
    for motion in ("bounce", "fall"):
        assert min(medians[2].value for medians in rows[motion].values()) > 3


def test_a_frozen_picture_fails_motion_and_keeps_the_rest() -> None:
    frozen = score(Oracle(SMALL, lambda _, frames: np.repeat(frames[:1], len(frames), axis=0)), SMALL)
    first, switched, *_ = frozen.shares
    assert first.colour.right == first.colour.total and first.direction.value < 0.4 and first.strict.right == 0
    assert switched.colour.value < 0.8 and switched.direction.value < 0.7
    kinds = {row.name: row for row in frozen.shares}
    assert kinds["switch: stop"].direction.value == 1


def test_mistakes_are_found_one_by_one() -> None:
    clip = Clip("circle", 9.0, 0.7, "black", (32.0, 32.0), (Phase("red", "right"),))
    case = Case("text", clip, ("first",), Request(("a red circle moves right",), 0))

    def judged(shown: Clip | Frames):
        return measure(case, render(shown) if isinstance(shown, Clip) else shown, NARROW.shapes)

    right = judged(clip)
    assert right.chunks[0].colour and right.chunks[0].direction and right.chunks[0].strict and right.whole
    assert not judged(replace(clip, phases=(Phase("blue", "right"),))).chunks[0].colour
    assert not judged(replace(clip, shape="square")).chunks[0].shape
    assert judged(replace(clip, phases=(Phase("red", "left"),))).chunks[0].direction is False
    slow = judged(replace(clip, speed=0.2)).chunks[0]
    assert slow.direction and slow.strict is False
    wrapped = judged(np.roll(render(clip), 32, axis=2))
    assert wrapped.wraps and not wrapped.whole
    empty = judged(np.zeros_like(render(clip)))
    assert not empty.whole and not empty.chunks[0].colour and empty.chunks[0].direction is False
    with pytest.raises(MagiError, match="needs"):
        judged(render(clip)[:10])


def test_cases_are_held_back_and_repeatable() -> None:
    first, again = (list(build_cases("narrow", "image", 12, 3)) for _ in range(2))
    assert [case.request.prompts for case in first] == [case.request.prompts for case in again]
    assert len({case.request.seed for case in first}) == 12
    colours = {phase.colour for case in first for phase in case.clip.phases}
    assert not any(colour in prompt for case in first for prompt in case.request.prompts for colour in colours)
    texts = [prompt for case in build_cases("narrow", "text", 30, 3) for prompt in case.request.prompts]
    phrases = [
        text.split("{}")[0] for field in fields(WORDINGS["test"]) for text in getattr(WORDINGS["test"], field.name)
    ]
    assert all(any(phrase in text for phrase in phrases) for text in texts)
    with pytest.raises(MagiError, match="narrow"):
        next(build_cases("flat", "text", 1, 0))


def test_the_report_holds_every_figure(perfect: Scores, tmp_path: Path) -> None:
    table, data, picture = write_report(perfect, tmp_path, {"model": "nano"})
    text = table.read_text()
    assert all(f"| {row.name} |" in text for row in perfect.shares)
    assert "100.0 % [76, 100] (n=12; goal 95)" in text and "constant velocity" in text
    figures = json.loads(data.read_text())
    assert (figures["settings"]["model"], figures["settings"]["world"]) == ("nano", "narrow")
    assert figures["shares"][0]["colour"] | {"interval": 0} == {"right": 12, "total": 12, "value": 1.0, "interval": 0}
    assert [row["name"] for row in figures["errors"]] == ["slide", "still", "bounce", "fall"]
    assert Image.open(picture).width > 1000 and sorted(tmp_path.iterdir()) == sorted([table, data, picture])


def test_intervals() -> None:
    low, high = Share(95, 100).interval
    assert (round(low, 3), round(high, 3)) == (0.888, 0.978)  # Wilson, worked by hand
    assert Share(0, 10).interval[0] == 0 and Share(10, 10).interval[1] == pytest.approx(1)
    assert Share.of([True, None, False]) == Share(1, 2)
    median = Median.of([float(value) for value in range(101)])
    assert median.value == 50 and 35 < median.low < 50 < median.high < 65


def test_a_model_is_asked_through_the_pipeline() -> None:
    asked: list[tuple] = []

    class Recorder:
        def generate(self, storyboard, *, image, video, seed, sampling):
            asked.append((storyboard, image, video, seed))
            return Generation(SimpleNamespace(frames=np.full((24, 64, 64, 3), seed + k, np.uint8)) for k in range(2))

    class Generation(list):
        making = "all that is made"

    entered: list[object] = []

    @contextmanager
    def within(making: object) -> Iterator[None]:
        entered.append(making)
        yield

    prefix = np.zeros((24, 64, 64, 3), np.uint8)
    frames = generator_of(Recorder(), PRESETS["nano"].sampling, within)(
        [Request(("it falls", "it stops"), 3), Request(("it falls", "it stops"), 9, prefix=prefix)]
    )
    assert [video.shape for video in frames] == [(48, 64, 64, 3)] * 2 and frames[1][0, 0, 0, 0] == 9
    assert [(shot.prompt, shot.seconds) for shot in asked[0][0].shots] == [("it falls", 1.0), ("it stops", 1.0)]
    assert asked[0][2] is None and asked[1][2] is prefix and [seed for *_, seed in asked] == [3, 9]
    assert entered == [Generation.making] * 2
