"""Votes of people: the page in a real browser, from the keyboard alone, and what becomes of what it exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magi_core.errors import MagiError
from magi_core.evaluation.votes import QUESTIONS, count_votes, find_pairs, swapped, votes_markdown, write_page
from magi_core.video import VideoWriter
from magi_core.worlds.clips import NARROW, render, sample_clip

PROMPTS = {f"clip{n}": f"clip {n}: </script><b>moves</b>" for n in range(6)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    import numpy as np

    root = tmp_path_factory.mktemp("votes")
    for seed, model in enumerate(("ours", "theirs")):
        for n in range(6):
            with VideoWriter(root / model / f"clip{n}.webm") as writer:
                writer.append(render(sample_clip(NARROW, 1, np.random.default_rng([seed, n]))))
    (root / "ours" / "alone.webm").write_bytes(b"no partner")
    return root / "ours", root / "theirs"


def export(path: Path, seed: int, votes: dict[str, dict[str, str]], page: str = "p", voter: str = "") -> Path:
    about = {"format": "magi-votes", "page": page, "seed": seed, "names": ["ours", "theirs"], "voter": voter}
    path.write_text(json.dumps(about | {"votes": votes}))
    return path


def test_pairs_sides_and_order(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = find_pairs(*folders, PROMPTS)
    assert [pair.name for pair in pairs] == [f"clip{n}" for n in range(6)]
    page, again, other = (tmp_path / f"{name}.html" for name in ("page", "again", "other"))
    assert write_page(pairs, page, ("ours", "theirs"), seed=1) is None
    write_page(pairs, again, ("ours", "theirs"), seed=1)
    write_page(pairs, other, ("ours", "theirs"), seed=2)
    assert page.read_text() == again.read_text() != other.read_text()
    assert "</script><b>" not in page.read_text() and "http:" not in page.read_text()
    assert 0.3 < sum(swapped(1, str(n)) for n in range(200)) / 200 < 0.7
    beside = write_page(pairs, page, ("ours", "theirs"), seed=1, embed_up_to=1000)
    assert beside and len(list(beside.iterdir())) == 12 and not any("ours" in path.name for path in beside.iterdir())
    left = pairs[0].second if swapped(1, "clip0") else pairs[0].first
    place = next(n for n in range(1, 7) if (beside / f"{n:03}-left.webm").read_bytes() == left.read_bytes())
    assert f'"{beside.name}/{place:03}-left.webm"' in page.read_text()
    with pytest.raises(MagiError, match="same name"):
        find_pairs(folders[0], tmp_path)


def test_votes_become_wins_ties_and_losses(tmp_path: Path) -> None:
    names = [f"clip{n}" for n in range(10)]
    side = {name: ("left", "right")[swapped(4, name)] for name in names}  # where ours was shown
    other = {"left": "right", "right": "left"}
    one = export(tmp_path / "a.json", 4, {n: {"overall": side[n], "motion": "same"} for n in names})
    two = export(tmp_path / "b.json", 4, {n: {"overall": other[side[n]]} for n in names[:5]})
    models, verdicts, voters = count_votes([one, two])
    overall, motion, instruction, _ = verdicts
    assert models == ("ours", "theirs") and voters == 2
    assert (overall.wins.right, overall.ties.right, overall.losses.right) == (10, 0, 5)
    assert motion.ties.right == 10 and instruction.wins.total == 0
    table = votes_markdown(models, verdicts, voters)
    assert "| overall (n=15) | 67 % [42, 85] | 0 % [0, 20] | 33 % [15, 58] | 67 % [42, 85] |" in table
    for number, answered in enumerate((3, 7)):  # the same person saves twice
        export(
            tmp_path / f"ann{number}.json", 4, {n: {"overall": "same"} for n in names[:answered]}, voter=" Ann"[number:]
        )
    _, (overall, *_), voters = count_votes([one, two, *tmp_path.glob("ann*.json")])
    assert (overall.ties.right, voters) == (7, 3)
    with pytest.raises(MagiError, match="another page"):
        count_votes([one, export(tmp_path / "c.json", 4, {}, page="q")])
    with pytest.raises(MagiError, match="which is none"):
        count_votes([export(tmp_path / "d.json", 4, {"clip0": {"overall": "up"}})])
    (tmp_path / "e.json").write_text('{"votes": []}')
    with pytest.raises(MagiError, match="no votes"):
        count_votes([tmp_path / "e.json"])


@pytest.mark.parametrize("embed_up_to", [1 << 20, 0])
def test_a_person_votes_with_the_keyboard(
    browser: Any, folders: tuple[Path, Path], tmp_path: Path, embed_up_to: int
) -> None:
    target = tmp_path / "page.html"
    write_page(find_pairs(*folders, PROMPTS), target, ("ours", "theirs"), seed=3, embed_up_to=embed_up_to)
    context = browser.new_context(offline=True)
    page = context.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.goto(target.as_uri())
    page.wait_for_function(
        "document.getElementById('left').readyState >= 2 && document.getElementById('right').readyState >= 2"
    )
    assert "</script><b>moves</b>" in page.inner_text("#prompt") and "ours" not in page.inner_text("body")
    for number in range(6):
        assert page.inner_text("#place") == f"pair {number + 1} of 6"
        for key in "1233":
            page.keyboard.press(key)
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("1")  # the last pair's third question, thought over
    assert page.evaluate("document.getElementById('done').value") == 6
    page.reload()
    assert page.evaluate("document.getElementById('done').value") == 6  # kept
    page.fill("#voter", "Ada 1")
    with page.expect_download() as download:
        page.click("#export")
    assert download.value.suggested_filename == "votes-Ada_1.json"
    saved = tmp_path / "saved.json"
    download.value.save_as(saved)
    page.set_viewport_size({"width": 380, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
    assert said == []
    votes = json.loads(saved.read_text())["votes"]
    assert len(votes) == 6 and all(answers.keys() == QUESTIONS.keys() for answers in votes.values())
    assert sorted(answers["instruction"] for answers in votes.values()) == ["left"] + ["right"] * 5
    _, verdicts, _ = count_votes([saved])
    assert verdicts[1].ties.right == 6
    assert verdicts[0].wins.right == sum(not swapped(3, f"clip{n}") for n in range(6))  # all were given to the left
