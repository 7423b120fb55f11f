"""Prompt cleaning: the recorded pairs, with and without the optional packages, and nothing that raises."""

from __future__ import annotations

import logging
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_core.errors import MagiError
from magi_core.golden import Golden
from magi_core.text.cleaning import MAX_CHARACTERS, clean_caption, clean_once, plain_html_text, plain_mend


def test_recorded_prompts(golden: Golden) -> None:
    for pair in golden.json("text_cleaning.json"):
        assert clean_once(pair["input"]) == pair["clean_once"], pair["input"]
        assert clean_caption(pair["input"]) == pair["clean_twice"], pair["input"]


def test_recorded_prompts_without_optional_packages(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("bs4", "ftfy"):
        monkeypatch.setitem(sys.modules, package, None)
    test_recorded_prompts(golden)


@pytest.mark.parametrize(
    "markup",
    [
        "a<b>b</b> c",
        "x<script>hide()</script>y",
        "<!-- no -->yes",
        "q &lt; r &amp s &nosuch; t &#233;",
        "a < b > c",
        "<p",
        "5 <6",
    ],
)
def test_html_fallback_equals_beautifulsoup(markup: str) -> None:
    bs4 = pytest.importorskip("bs4")
    assert plain_html_text(markup) == bs4.BeautifulSoup(markup, features="html.parser").text


@pytest.mark.parametrize(
    "text",
    [
        "\ufb01ne \ufb02ow",
        "\uff21\uff22\u3000\uff11",
        "\u201ccurly\u201d \u2018quotes\u2019",
        "one\r\ntwo\u2028three",
        "e\u0301",
        "a\x07b",
    ],
)
def test_unicode_fallback_equals_ftfy(text: str) -> None:
    ftfy = pytest.importorskip("ftfy")
    assert plain_mend(text) == ftfy.fix_text(text)


def test_garbled_text_names_the_extra(caplog: pytest.LogCaptureFixture) -> None:
    assert plain_mend("cafÃ© at night") == "cafÃ© at night"
    assert "comfyui-magi[text]" in caplog.text


@given(st.text(alphabet=st.sampled_from("ab 1<>&;#![]-_./\\\"'%@:x中é("), max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_becomes_one_stripped_line(text: str) -> None:
    cleaned = clean_caption(text)
    assert cleaned == cleaned.strip() and "\n" not in cleaned


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("\u4e00\u53ea\u732b", "nothing of the prompt"),
        ("www.example.com", "nothing of the prompt"),
        ("a cat, \u732b", "the Chinese characters of the prompt"),
        ("a cat", ""),
        (" ", ""),
    ],
)
def test_what_cleaning_leaves_nothing_of_is_said(prompt: str, says: str, caplog: pytest.LogCaptureFixture) -> None:
    clean_caption(prompt)
    assert (says in caplog.text and prompt in caplog.text) if says else not caplog.text


def test_long_prompt_is_cut_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        cleaned = clean_caption("word " * MAX_CHARACTERS)
    assert len(cleaned) < MAX_CHARACTERS and "only the first" in caplog.text


def test_prompt_must_be_text() -> None:
    with pytest.raises(MagiError, match="must be text, not int"):
        clean_caption(7)  # type: ignore[arg-type]
