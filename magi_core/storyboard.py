"""What the artist asks: shots with a prompt, a length in seconds and perhaps a keyframe image.

A ``Storyboard`` has three forms that say the same: this Python value, lines of text, and versioned JSON (docs/storyboard.md).
All three meet the same checks here, and turning one form into another and back changes nothing.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real
from pathlib import Path, PurePosixPath, PureWindowsPath

from magi_core.errors import MagiError, shorten
from magi_core.storyboard_forms import (
    DEFAULT_SECONDS,
    MAX_DOCUMENT_CHARACTERS,
    Document,
    Row,
    is_timed,
    read_json,
    read_text,
    write_json,
    write_text,
)

MAX_SHOTS = 1000
MAX_SHOT_SECONDS = 3600.0
MAX_TOTAL_SECONDS = 36_000.0
MAX_PROMPT_CHARACTERS = 10_000
MAX_TOTAL_CHARACTERS = 1_000_000
MAX_KEYFRAME_CHARACTERS = 1_000

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_CONTROL_OR_BREAK = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Shot:
    """One prompt, held for some seconds.

    ``seconds`` is more than 0 and at most 3600. ``keyframe`` is the picture that the shot starts from: a file relative to the
    storyboard's folder, inside of it. Raises MagiError for anything else.
    """

    prompt: str
    seconds: float = DEFAULT_SECONDS
    keyframe: str | None = None

    def __post_init__(self) -> None:
        _check_words("prompt", self.prompt)
        object.__setattr__(self, "seconds", _checked_seconds(self.seconds))
        if self.keyframe is not None:
            object.__setattr__(self, "keyframe", _checked_keyframe(self.keyframe))


@dataclass(frozen=True)
class Storyboard:
    """Shots in order, and a ``prefix`` that is put in front of every prompt (with one space between)."""

    shots: tuple[Shot, ...]
    prefix: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.shots, str) or not isinstance(self.shots, tuple | list):
            raise MagiError(f"a storyboard's shots must be a list of Shot, not {shorten(self.shots)}")
        object.__setattr__(self, "shots", tuple(self.shots))
        _check_words("the prefix", self.prefix)
        _check_count(len(self.shots))
        for number, shot in enumerate(self.shots, 1):
            if not isinstance(shot, Shot):
                raise MagiError(f"shot {number} is {shorten(shot)}; it must be a Shot")
            if not self.prompt_of(shot):
                raise MagiError(
                    f"shot {number}: the prompt is empty; say what is seen, or give the storyboard a prefix"
                )
        if (characters := sum(len(shot.prompt) for shot in self.shots)) > MAX_TOTAL_CHARACTERS:
            raise MagiError(
                f"the prompts have {characters} characters together; at most {MAX_TOTAL_CHARACTERS} are allowed"
            )
        if self.seconds > MAX_TOTAL_SECONDS:
            raise MagiError(f"the shots last {self.seconds:g} s together; at most {MAX_TOTAL_SECONDS:g} s are allowed")

    @property
    def seconds(self) -> float:
        """Length of the whole storyboard in seconds."""
        return math.fsum(shot.seconds for shot in self.shots)

    def prompt_of(self, shot: Shot) -> str:
        """The prompt as the model gets it: prefix, one space, the shot's own words."""
        return " ".join(words for words in (self.prefix.strip(), shot.prompt.strip()) if words)

    def to_text(self) -> str:
        """The text form, one line a shot."""
        return write_text(self._document())

    def to_json(self) -> str:
        """The JSON form, version 1."""
        return write_json(self._document())

    @classmethod
    def parse(cls, source: str | Path) -> Storyboard:
        """Read a storyboard from a file (.json or .txt), or from JSON or text given as a string.

        A string is taken for a file when it is one line that ends in .json or .txt. Where strings come from strangers, use
        ``from_string``, which opens no file. Raises MagiError naming the line, the shot or the key that cannot be used.
        """
        if isinstance(source, Path) or (isinstance(source, str) and is_file_name(source)):
            return cls.from_string(_read_file(Path(source)))
        return cls.from_string(source)

    @classmethod
    def from_string(cls, text: str) -> Storyboard:
        """Read the JSON form (when it starts with a curly bracket, or with a list of such) or else the text form."""
        if not isinstance(text, str):
            raise MagiError(f"a storyboard must be text, not {shorten(text)}")
        if len(text) > MAX_DOCUMENT_CHARACTERS:
            raise MagiError(f"the storyboard has {len(text)} characters; at most {MAX_DOCUMENT_CHARACTERS} are read")
        text = text.removeprefix("\ufeff")
        document = read_json(text) if re.match(r"\s*(\{|\[\s*\{)", text) else read_text(text)
        _check_count(len(document.rows))
        return cls(tuple(_shot(row) for row in document.rows), document.prefix)

    def _document(self) -> Document:
        return Document(self.prefix, tuple(Row("", shot.prompt, shot.seconds, shot.keyframe) for shot in self.shots))


def _shot(row: Row) -> Shot:
    try:
        return Shot(row.prompt, row.seconds, row.keyframe)
    except MagiError as error:
        raise MagiError(f"{row.place}: {error}") from error


def _check_count(shots: int) -> None:
    if not shots:
        raise MagiError("the storyboard has no shots; write at least one, like '2s: a red circle moves right'")
    if shots > MAX_SHOTS:
        raise MagiError(f"the storyboard has {shots} shots; at most {MAX_SHOTS} are allowed")


def _check_words(name: str, words: object) -> None:
    if not isinstance(words, str):
        raise MagiError(f"{name} is {shorten(words)}; it must be text")
    if len(words) > MAX_PROMPT_CHARACTERS:
        raise MagiError(f"{name} has {len(words)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed")
    _check_characters(name, words, _CONTROL)


def _check_characters(name: str, words: str, refused: re.Pattern[str]) -> None:
    try:
        words.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MagiError(
            f"{name} {shorten(words)} holds half a character (a lone surrogate) at position {error.start}; type it again"
        ) from error
    if found := refused.search(words):
        raise MagiError(
            f"{name} {shorten(words)} holds the control character {found[0]!r} at position {found.start()}; remove it"
        )


def _checked_seconds(seconds: object) -> float:
    refused = MagiError(
        f"seconds is {shorten(seconds)}; it must be a number of seconds above 0, at most {MAX_SHOT_SECONDS:g}"
    )
    if isinstance(seconds, bool) or not isinstance(seconds, Real):
        raise refused
    try:
        value = float(seconds)
    except OverflowError:
        raise refused from None
    if not 0 < value <= MAX_SHOT_SECONDS:
        raise refused
    return value


def _checked_keyframe(keyframe: object) -> str:
    if not isinstance(keyframe, str):
        raise MagiError(f"keyframe is {shorten(keyframe)}; it must be the name of an image file")
    if not keyframe.strip():
        raise MagiError("keyframe is empty; name an image file or leave the keyframe out")
    if len(keyframe) > MAX_KEYFRAME_CHARACTERS:
        raise MagiError(f"keyframe has {len(keyframe)} characters; at most {MAX_KEYFRAME_CHARACTERS} are allowed")
    _check_characters("keyframe", keyframe, _CONTROL_OR_BREAK)
    name = keyframe.replace("\\", "/")
    # A file must mean the same on every system, so what only Windows takes for absolute (C:, //host) is refused everywhere.
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or ".." in name.split("/"):
        raise MagiError(
            f"keyframe {shorten(keyframe)} must be a file inside the storyboard's folder: "
            "give its name relative to that folder, without '..' and without a drive"
        )
    return name


def is_file_name(source: str) -> bool:
    """Whether ``parse`` takes a string for the name of a file."""
    name = source.strip()
    one_line = "\n" not in name and "\r" not in name
    return one_line and name.lower().endswith((".json", ".txt")) and not name.startswith("{") and not is_timed(name)


def _read_file(path: Path) -> str:
    try:
        if path.stat().st_size > 4 * MAX_DOCUMENT_CHARACTERS:
            raise MagiError(f"the storyboard {path} has {path.stat().st_size} bytes; that is no storyboard")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MagiError(f"the storyboard {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise MagiError(f"cannot read the storyboard {path}: {error.strerror}") from error
    except ValueError as error:  # a name with a NUL
        if isinstance(error, MagiError):
            raise
        raise MagiError(f"cannot read the storyboard {shorten(str(path))}: this is no file name") from error
