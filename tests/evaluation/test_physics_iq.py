"""Physics-IQ: recorded figures of its public code, the code itself where MAGI_PHYSICS_IQ names a checkout, and what scores must do."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from magi_core.errors import MagiError
from magi_core.evaluation.physics_iq import Agreement, View, agreement, motion_masks, physics_score, seen
from magi_core.evaluation.physics_iq_folder import Benchmark, Given, predict_all, score_all
from magi_core.images import Frames
from magi_core.video import VideoWriter

pytest.importorskip("cv2", reason="OpenCV is not installed; pip install 'comfyui-magi[evaluation]'")

FPS = 8
FRAMES = 5 * FPS
VIEWS = ("perspective-left", "perspective-center", "perspective-right")
SCENARIOS = ("trimmed-ball-falls", "trimmed-block-slides")
WIDTH, HEIGHT = 128, 96


def moving_ball(x: float, y: float, dx: float, dy: float, seed: int, frames: int = FRAMES) -> Frames:
    """A bright disc before grey, with a little noise as a sensor has."""
    rng = np.random.default_rng(seed)
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    video = np.full((frames, HEIGHT, WIDTH, 3), 90.0)
    for t in range(frames):
        disc = np.hypot(columns - x - dx * t, rows - y - dy * t) < 14
        video[t][disc] = (220, 160, 60)
    return np.clip(video + rng.normal(0, 2, video.shape), 0, 255).astype(np.uint8)


def write(path: Path, frames: Frames) -> None:
    with VideoWriter(path, fps=FPS) as writer:
        writer.append(frames)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of two events from three sides, twice each, with predictions that are good, late, and still."""
    root = tmp_path_factory.mktemp("physics")
    rows = ["scenario,description,category,generated_video_name"]
    tests, given = root / f"split-videos/testing/{FPS}FPS", root / f"split-videos/conditioning/{FPS}FPS"
    for take in (1, 2):
        for number, (scenario, view) in enumerate(((s, v) for s in SCENARIOS for v in VIEWS), 1 + 6 * (take - 1)):
            dx, dy = (0.4, 2.2) if "falls" in scenario else (2.5, 0.0)
            x, y = 40 + 2 * VIEWS.index(view), 30 + take
            tail = f"{FPS}FPS_{view}_take-{take}_{scenario}.mp4"
            write(tests / f"{number:04}_testing-videos_{tail}", moving_ball(x, y, dx, dy, number))
            rows.append(f'{number:04}_{view}_take-{take}_{scenario}.mp4,"a ball, moving",Solid Mechanics,unused.mp4')
            if take == 1:
                write(given / f"{number:04}_conditioning-videos_{tail}", moving_ball(x, y, 0, 0, number, 3 * FPS))
                factor = (1.0, 0.7, 0.0)[VIEWS.index(view)]
                made = moving_ball(x, y, factor * dx, factor * dy, 90 + number)
                write(root / f"made/{number:04}_{view}_{scenario}.mp4", made)
    (root / "descriptions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def views(folder: Path) -> list[View]:
    benchmark = Benchmark(folder, FPS)
    scored = list(score_all(benchmark, benchmark.tasks(), folder / "made"))
    assert [problem for *_, problem in scored] == [None] * 6
    return [view for _, view, _ in scored if view]


def test_figures_recorded_from_the_public_code(views: list[View]) -> None:
    """Of the first event: seen from the side of the good, the late and the still prediction. Encoders of other builds differ a little."""
    recorded = [(0.9783, 0.9439, 0.9512, 0.0), (0.9348, 0.2383, 0.7634, 0.00425), (0.0, 0.05, 0.0, 0.00763)]
    for view, figures in zip(views[:3], recorded, strict=True):
        assert astuple(view.model)[:3] == pytest.approx(figures[:3], abs=0.01)
        assert view.model.mse == pytest.approx(figures[3], abs=1e-4)
    assert physics_score(views).original == pytest.approx(61.19, abs=0.5)


def test_scores_rise_with_the_truth_of_a_prediction(views: list[View]) -> None:
    good, late, still = (physics_score(views[start::3]) for start in range(3))
    assert good.verified > 90 > late.verified > still.verified
    assert good.original > late.original > still.original
    assert still.model.spatial == 0 and still.model.spatiotemporal < 0.1


def test_the_takes_themselves_score_full_marks(views: list[View]) -> None:
    score = physics_score([replace(view, model=view.physical) for view in views])
    assert score.original == pytest.approx(100, abs=1e-3) and score.verified == pytest.approx(100, abs=1e-3)
    assert score.verified_interval[0] == pytest.approx(score.verified, abs=1e-3)


def test_scores_by_hand() -> None:
    one = View("a", "", Agreement(0.3, 0.2, 0.1, 0.008), Agreement(0.6, 0.5, 0.4, 0.002))
    other = View("b", "", Agreement(0.9, 0.5, 0.4, 0.002), Agreement(0.6, 0.5, 0.4, 0.004))
    score = physics_score([one, other])
    assert score.original == pytest.approx(100 * ((1.0 + 0.7 + 0.625) / 3 - (0.005 - 0.003)))
    assert score.verified == pytest.approx(100 * ((0.5 + 0.4 + 0.25 + 0.25) / 4 + 1) / 2, abs=1e-4)
    assert replace(one, model=replace(one.model, mse=0.0)).verified.mse == 1
    with pytest.raises(MagiError, match="no video"):
        physics_score([])


def test_videos_of_other_length_are_refused() -> None:
    frames = moving_ball(40, 40, 2, 0, 1, 4)
    whole, part = (seen(video, motion_masks(video), (16, 16)) for video in (frames, frames[:3]))
    with pytest.raises(MagiError, match="same length"):
        agreement(whole, part)


def test_predictions_go_on_where_they_stopped_and_failures_are_named(folder: Path, tmp_path: Path) -> None:
    benchmark = Benchmark(folder, FPS)
    tasks = benchmark.tasks()
    assert [task.second for task in tasks] == [f"{number:04}" for number in range(7, 13)]
    asked: list[Given] = []

    def predict(given: Given) -> Iterator[Frames]:
        asked.append(given)
        assert given.video is not None and given.image is None
        if given.seed == 102:
            raise MagiError("this one cannot be made")
        last = given.video[-1:]
        yield np.repeat(last, 24, axis=0)
        yield np.repeat(last, 24, axis=0)

    done = dict(
        predict_all(benchmark, tasks[:3], tmp_path, predict, seed=100, image=False, size=(48, 64), made_with="x")
    )
    assert [problem for problem in done.values()] == [None, "this one cannot be made", None]
    assert asked[0].video.shape == (3 * FPS, 48, 64, 3) and asked[0].prompt == "a ball, moving"
    again = dict(
        predict_all(benchmark, tasks[:3], tmp_path, predict, seed=200, image=False, size=(48, 64), made_with="x")
    )
    assert list(again.values()) == [None] * 3 and len(asked) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [task.file for task in tasks[:3]]
    with pytest.raises(MagiError, match="another model"):
        list(predict_all(benchmark, tasks[:1], tmp_path, predict, seed=100, image=False, size=(48, 64), made_with="y"))
    (tmp_path / tasks[0].file).write_bytes(b"half a video")
    (again,) = predict_all(benchmark, tasks[:1], tmp_path, predict, seed=100, image=False, size=(48, 64), made_with="x")
    assert again == (tasks[0], None) and benchmark.score(tasks[0], tmp_path / tasks[0].file)
    missing = [problem for *_, problem in score_all(benchmark, tasks[3:4], tmp_path)]
    assert "does not exist" in missing[0]
    with pytest.raises(MagiError, match="download the benchmark at 30"):
        Benchmark(folder, 30).given(tasks[0], 0, image=False, size=(48, 64))
    with pytest.raises(MagiError, match=r"descriptions\.csv"):
        Benchmark(tmp_path, FPS).tasks()


# ---- beside the public code ------------------------------------------------------------------------------------------


@pytest.fixture
def public() -> Iterator[ModuleType]:
    """Imports modules of the checkout, in the old layout (code/) or the new (physiq/)."""
    checkout = os.environ.get("MAGI_PHYSICS_IQ")
    if not checkout:
        pytest.skip("MAGI_PHYSICS_IQ names no checkout of google-deepmind/physics-IQ-benchmark")
    root = Path(checkout).resolve()
    new = (root / "physiq").is_dir()
    sys.path.insert(0, str(root if new else root / "code"))
    try:
        yield lambda name: importlib.import_module(f"physiq.{name}" if new else name)
    except ModuleNotFoundError as error:
        pytest.skip(f"the checkout needs {error.name}")
    finally:
        sys.path.pop(0)


def test_the_public_code_gives_the_same_figures(folder: Path, views: list[View], public, tmp_path: Path) -> None:
    masks, metrics = public("binary_mask_generator"), public("calculate_and_write_metrics_to_csv")
    real = folder / f"split-videos/testing/{FPS}FPS"
    made_masks, real_masks, table = tmp_path / "made", tmp_path / "real", tmp_path / "scores.csv"
    masks.generate_binary_masks(str(real), str(real_masks), True)
    masks.generate_binary_masks(str(folder / "made"), str(made_masks), False)
    metrics.process_videos(str(real), str(folder / "made"), str(real_masks), str(made_masks), str(table), FPS)
    score = physics_score(views)
    theirs, _ = public("calculate_iq_score").calculate_iq_score(str(table))
    assert score.original == pytest.approx(theirs, abs=0.02)  # they round the means of the takes to four decimals
    import pandas

    for scenario, row in pandas.read_csv(table).set_index("scenario").iterrows():
        for view in VIEWS:
            mine = next(v for v in views if v.name.endswith(f"{view}_{scenario.removesuffix('.mp4')}"))
            names = ("spatial_iou_v1", "spatiotemporal_iou_v1", "weighted_spatial_iou_v1", "v1_mse")
            figures = [np.mean(np.fromstring(str(row[f"{n}_{view}"]).strip("[]"), sep=",")) for n in names]
            assert astuple(mine.model) == pytest.approx(figures, abs=6e-5)
    if "physiq" in masks.__name__:
        values = public("calculate_iq_score_stable").IQTable.from_csv(str(table)).get_output_dict()
        assert score.verified / 100 == pytest.approx(values["final_score_view"], abs=1e-6)
        assert score.original / 100 == pytest.approx(values["final_score_orig"], abs=1e-6)
