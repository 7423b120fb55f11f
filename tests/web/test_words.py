"""The page's words: every language says everything, with the same values in it, and nothing is said that no file knows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "web").glob("*.js"))
BUTTONS = (
    ("timeline", "timeline_view.js"),
    ("live", "review_panel.js"),
    ("unfinished", "unfinished_dialog.js"),
)
"""Where buttons are named after what they do, in which part of the words."""


def words(language: str) -> dict[str, str]:
    def flat(table: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
        for key, value in table.items():
            if isinstance(value, dict):
                yield from flat(value, f"{path}{key}.")
            else:
                yield f"{path}{key}", value

    tables = {}
    for name in ("main", "settings", "commands"):
        tables |= dict(flat(json.loads((ROOT / "locales" / language / f"{name}.json").read_text("utf-8")), f"{name}."))
    return tables


def test_chinese_says_all_that_english_says() -> None:
    english, chinese = words("en"), words("zh")
    assert english.keys() == chinese.keys()
    for key, said in english.items():
        assert set(re.findall(r"\{(\w+)\}", said)) == set(re.findall(r"\{(\w+)\}", chinese[key])), key


def test_every_word_is_known_and_used() -> None:
    known = {key.removeprefix("main.magi.") for key in words("en") if key.startswith("main.magi.")}
    code = "\n".join(path.read_text("utf-8") for path in SCRIPTS)
    said = set(re.findall(r'"((?:timeline|places|live|unfinished)\.\w+)"', code))
    said |= {f"errors.{key}" for key in re.findall(r'(?:StoryboardError|fail)\("(\w+)"', code)}
    acts = re.findall(r'(?:worded|button)\("(\w+)"', code)
    for part, file in BUTTONS:
        view = (ROOT / "web" / file).read_text("utf-8")
        titled = re.findall(r'worded\("(\w+)"', view) + re.findall(r'button\("(\w+)"[,)]', view) * (
            part == "unfinished"
        )
        said |= {f"{part}.{act}Title" for act in titled}
    assert acts and len(said) > 60
    assert said <= known
    built = {f"as{mode}" for mode in ("Timeline", "Text")} | {f"{act}Title" for act in acts}
    assert [
        key for key in known if key.split(".")[1] not in built and not re.search(rf"\b{key.split('.')[1]}\b", code)
    ] == []
