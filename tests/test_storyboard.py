"""Storyboards: the three forms say the same, and whatever cannot be used is refused with one message that names the place."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_core.errors import MagiError
from magi_core.images import read_keyframe
from magi_core.storyboard import MAX_SHOTS, MAX_TOTAL_CHARACTERS, Shot, Storyboard

HERE = Path(__file__).parent
CASES = json.loads((HERE / "storyboard_cases.json").read_text(encoding="utf-8"))

letters = st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\n\r\t"\\[]:#{}')
lookalikes = st.sampled_from(
    [
        "[image: a.png]",
        '"',
        '"quoted"',
        "2s:",
        "3:",
        "prefix: x",
        "# x",
        "{",
        '"[image:',
        "\\u005b",
        "\ufeff",
        "\u2028",
        "[IMAGE\uff1a",
    ]
)
words = st.lists(st.text(letters, max_size=8) | lookalikes, max_size=6).map("".join)
names = words.map(lambda name: re.sub(r"[\n\r\t]", " ", name)).filter(
    lambda name: name.strip() and not re.search(r"(^.?[:/\\])|\.\.|^[\\/]", name)
)
seconds = st.floats(0, 3600, exclude_min=True) | st.integers(1, 3600) | st.decimals(1, 36, places=2).map(float)
shots = st.builds(Shot, words.filter(str.strip), seconds, st.none() | names)
storyboards = st.builds(Storyboard, st.lists(shots, min_size=1, max_size=6), words)


@settings(deadline=None)
@given(storyboards)
def test_text_json_and_python_forms_round_trip(storyboard: Storyboard) -> None:
    text, document = storyboard.to_text(), storyboard.to_json()
    for form in (text, document, text.replace("\n", "\r\n"), "\ufeff" + text):
        assert Storyboard.from_string(form) == storyboard
    assert Storyboard.parse(text) == Storyboard.parse(document) == storyboard
    assert Storyboard.from_string(text).to_text() == text
    python = [Shot(shot["prompt"], shot["seconds"], shot.get("keyframe")) for shot in json.loads(document)["shots"]]
    assert Storyboard(tuple(python), json.loads(document).get("prefix", "")) == storyboard
    assert len(text.rstrip("\n").split("\n")) == len(storyboard.shots) + bool(storyboard.prefix)


@settings(deadline=None)
@given(st.text() | words | words.map(lambda text: '{"version": 1, "shots": [' + text))
def test_any_text_is_a_storyboard_or_a_clear_error(text: str) -> None:
    try:
        storyboard = Storyboard.from_string(text)
    except MagiError as error:
        assert str(error)
    else:
        assert Storyboard.from_string(storyboard.to_text()) == storyboard


@pytest.mark.parametrize("case", CASES["ok"], ids=lambda case: case["text"][:30])
def test_read_as_meant(case: dict) -> None:
    storyboard = Storyboard.from_string(case["text"])
    assert storyboard == Storyboard([Shot(**shot) for shot in case["shots"]], case.get("prefix", ""))


def malformed() -> list[tuple[str, list[str]]]:
    """(source, words that the message must hold): the written table and every bad value at several places in both forms."""
    table = [(case["text"], case["says"]) for case in CASES["bad"]]
    bad_values: dict[str, list[str]] = {
        "prompt": ["1", "null", "true", "[]", "{}", '["a"]', "1e400", f'"{"x" * 10_001}"', '"\\u0000"', '"a\\u0085"', '"\\udc00"',
                   '"\\u001b[31m"', '""', '" \\n "'],
        "seconds": ["0", "-0.0", "-1", "3600.0001", "1e9", "1e400", "-1e400", "NaN", "Infinity", "null", "true", "false", '"2"', '"2s"',
                    "[]", "[2]", "{}", "9" * 5000, "-" + "9" * 5000, "1" + "0" * 400 + ".5"],
        "keyframe": ["1", "true", "[]", '""', '"  "', '"/a.png"', '"../a.png"', '"a/../../b.png"', '"..\\\\a.png"', '"C:\\\\a.png"',
                     '"c:a.png"', '"\\\\\\\\host\\\\share\\\\a.png"', '"a\\u0000.png"', '"a\\nb.png"', '"\\ud800.png"', f'"{"x" * 1001}"',
                     '"file\\u001f.png"', '".."'],
    }  # fmt: skip
    for number in (1, 2, 5):
        for field, values in bad_values.items():
            for value in values:
                shot = {"prompt": '"a"', field: value}
                written = "{" + ", ".join(f'"{key}": {item}' for key, item in shot.items()) + "}"
                good = ['{"prompt": "a", "seconds": 1}'] * 5
                good[number - 1] = written
                table.append((f'{{"version": 1, "shots": [{", ".join(good)}]}}', [f"shot {number}", field]))
    for key in ("Prompt", "second", "duration", "image", "", "é", "\\ud800", "__class__", "x" * 500):
        for number in (1, 3):
            good = ['{"prompt": "a"}'] * 3
            good[number - 1] = f'{{"prompt": "a", "{key}": 1}}'
            table.append((f'{{"version": 1, "shots": [{", ".join(good)}]}}', [f"shot {number}", "unknown key"]))
    for value in ("null", "0", "-1", "1.0", "1.5", "1e400", "NaN", "[1]", "{}", '"one"', "false", "9" * 4000):
        table.append((f'{{"version": {value}, "shots": [{{"prompt": "a"}}]}}', ["version is"]))
    for value in ("null", "1", '"a"', "true", '{"prompt": "a"}'):
        table.append((f'{{"version": 1, "shots": {value}}}', ["shots", "list"]))
        table.append((f'{{"version": 1, "shots": [{{"prompt": "a"}}, [{value}]]}}', ["shot 2", "JSON object"]))
    for cut in range(2, 53):
        table.append(('{"version": 1, "shots": [{"prompt": "a", "seconds": 2}]}'[:cut], ["not valid JSON", "column"]))
    for time in (
        "-2s:",
        "+2s:",
        "2m:",
        "1h:",
        "2min:",
        "2sec:",
        "1e3s:",
        "0:02:",
        "1.2.3s:",
        "1-2s:",
        "2 :",
        "1..5s:",
        "0.0s:",
        "9999s:",
    ):
        for before in ("", "1s: a\n# comment\n\n"):
            line, shot = (1, 1) if not before else (4, 2)
            table.append((f"{before}{time} a dot", [f"line {line}", f"shot {shot}"]))
    for name in ("..", "../x", "a/../../x", "/x", "\\x", "d:x", "a\x00b", "a\x7f", "", " ", '""', "\udc80"):
        for before in ("", "1s: a\n"):
            line = 1 if not before else 2
            table.append((f"{before}2s: a dot [image: {name}]", [f"line {line}", "keyframe"]))
    table += [
        ("\n".join(["1s: a"] * (MAX_SHOTS + 1)), ["1001 shots", "1000"]),
        ("\n".join(["3600s: a"] * 11), ["39600 s", "36000 s"]),
        ("\n".join(["1s: " + "x" * 9_999] * 101), ["characters together", str(MAX_TOTAL_CHARACTERS)]),
        ("prefix: " + "x" * 10_001 + "\n1s: a", ["prefix", "10001"]),
        ("x" * 8_000_001, ["8000001 characters", "8000000"]),
        ("[" * 100_000, ["line 1", "100000 characters"]),
        ('{"version": 1, "shots": ' + "[" * 100_000, ["nested too deeply"]),
        ('{"version": 1, "shots": [{"prompt": ' + "[" * 500 + "]" * 500 + "}]}", ["shot 1", "prompt"]),
        ("1" + " " * 100_000 + ":", ["line 1", "characters"]),
        ("2s: " + "[image:" * 2_000 + "]", ["line 1", "keyframe"]),
    ]  # fmt: skip
    return table


MALFORMED = malformed()


def test_the_table_of_malformed_storyboards_is_long() -> None:
    assert len(MALFORMED) >= 300
    assert len({source for source, _ in MALFORMED}) == len(MALFORMED)


@pytest.mark.parametrize(("source", "says"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_gives_one_error_that_names_the_place(source: str, says: list[str]) -> None:
    with pytest.raises(MagiError) as caught:
        Storyboard.from_string(source)
    message = str(caught.value)
    assert all(word in message for word in says), message
    assert len(message) < 500
    message.encode("utf-8")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Storyboard("a red circle"), "list of Shot"),  # type: ignore[arg-type]
        (lambda: Storyboard(["a red circle"]), "shot 1 is 'a red circle'"),  # type: ignore[list-item]
        (lambda: Storyboard([]), "no shots"),
        (lambda: Storyboard([Shot("a"), Shot(" ")]), "shot 2"),
        (lambda: Shot("a", 10**400), "seconds is"),
        (lambda: Storyboard.from_string(b"1s: a"), "must be text"),  # type: ignore[arg-type]
    ],
)
def test_python_form_is_checked(make, says: str) -> None:
    with pytest.raises(MagiError, match=re.escape(says)):
        make()


def test_values_cannot_be_changed_and_prompts_are_joined() -> None:
    storyboard = Storyboard([Shot("a dot", 1), Shot("", 2)], prefix="on black,")
    assert [storyboard.prompt_of(shot) for shot in storyboard.shots] == ["on black, a dot", "on black,"]
    assert storyboard.seconds == 3.0
    with pytest.raises(FrozenInstanceError):
        storyboard.shots[0].prompt = "b"  # type: ignore[misc]


def test_files_are_read_and_errors_name_them(tmp_path: Path) -> None:
    good = Storyboard([Shot("ein roter Kreis läuft", 2, "bild.png")])
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + good.to_text().encode())
    (tmp_path / "a.json").write_text(good.to_json(), encoding="utf-8")
    assert Storyboard.parse(tmp_path / "a.txt") == Storyboard.parse(str(tmp_path / "a.json")) == good
    (tmp_path / "latin.txt").write_bytes("1s: läuft".encode("latin-1"))
    for name, says in (
        ("latin.txt", "not UTF-8"),
        ("none.txt", "No such file"),
        ("", "cannot read"),
        ("\0.txt", "cannot read"),
    ):
        with pytest.raises(MagiError, match=says):
            Storyboard.parse(Path(f"{tmp_path}/{name}"))
    assert Storyboard.parse("2s: the sign says demo.txt").shots[0].prompt == "the sign says demo.txt"


def test_the_documentation_says_what_is_true() -> None:
    text = (HERE.parent / "docs" / "storyboard.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(text|json)\n(.*?)```", text, re.DOTALL)
    read = [Storyboard.from_string(block) for kind, block in blocks if '"$schema"' not in block]
    assert len(read) == 2 and read[0] == read[1], "the text and the JSON example are the same storyboard"


@pytest.mark.parametrize("path", sorted((HERE.parent / "storyboards").glob("*.[jt]*")), ids=lambda path: path.name)
def test_the_examples_can_be_used(path: Path) -> None:
    storyboard = Storyboard.parse(path)
    for shot in storyboard.shots:
        if shot.keyframe:
            assert read_keyframe(shot.keyframe, path.parent).shape == (64, 64, 3)
