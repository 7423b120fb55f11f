"""The two written forms of a storyboard: lines of text, and JSON. Rows in, rows out; what a row may hold is the storyboard's business.

Notable:
- Text has one line a shot, ``2s: a red circle moves right [image: first.png]``. What cannot stand there as it is (line breaks,
  outer spaces, ...) is written in quotes as a JSON string, and a prompt that is one whole JSON string is read as one. The writer
  asks the reader which of the two is needed, so the two cannot disagree.
- Every row keeps its place ("line 4", "shot 2") for the error messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, NamedTuple

from magi_core.errors import MagiError, shorten

MAX_DOCUMENT_CHARACTERS = 8_000_000
"""Nothing longer is parsed; more than any storyboard within the limits of storyboard.py can need."""

JSON_VERSION = 1

DEFAULT_SECONDS = 1.0
"""A shot without seconds lasts one second: one chunk at 24 frames per second."""


class Row(NamedTuple):
    """One shot as it was written; the values are not yet checked."""

    place: str
    prompt: Any
    seconds: Any = DEFAULT_SECONDS
    keyframe: Any = None


class Document(NamedTuple):
    """A storyboard as it was written; the values are not yet checked."""

    prefix: Any
    rows: tuple[Row, ...]


# --- text --------------------------------------------------------------------------------------------------------------------

_TIMED = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*s\s*[:\uff1a](.*)", re.DOTALL | re.IGNORECASE)
_MEANT_TIME = re.compile(
    r"[-+]?[0-9.][0-9.,:es\s\u2013\u2014-]{0,40}(?:[smh]|ms|secs?|seconds?|mins?|minutes?)?\s{0,9}[:\uff1a]"
    r"|[-+]?[0-9.]{1,40}s(?:\s|$)",
    re.IGNORECASE,
)
_IMAGE = re.compile(r"\[image\s*[:\uff1a]", re.IGNORECASE)
_PREFIX = re.compile(r"prefix\s*[:\uff1a](.*)", re.DOTALL | re.IGNORECASE)


def read_text(text: str) -> Document:
    """Read the text form: one line a shot; blank lines and lines that start with # are skipped.

    Raises MagiError naming the line that cannot be read.
    """
    prefix: str | None = None
    rows: list[Row] = []
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        found = _PREFIX.fullmatch(line)
        if not found:
            rows.append(_read_line(line, f"line {number} (shot {len(rows) + 1})"))
        elif rows or prefix is not None:
            raise MagiError(f"line {number}: 'prefix:' may stand once only, before the first shot")
        else:
            prefix = _read_words(found[1], f"line {number} (prefix)")
    return Document(prefix or "", tuple(rows))


def write_text(document: Document) -> str:
    """The text form, one line a shot; ``read_text`` of it gives the same values back."""
    lines = []
    if document.prefix:
        lines.append(f"prefix: {_write_words(document.prefix)}")
    for row in document.rows:
        seconds = format(Decimal(repr(row.seconds)).normalize(), "f")
        image = f" [image: {_write_words(row.keyframe)}]" if row.keyframe is not None else ""
        lines.append(f"{seconds}s: {_write_words(row.prompt)}{image}")
    return "\n".join(lines) + "\n"


def is_timed(line: str) -> bool:
    """Whether a line starts with seconds, as ``2s: ...`` does."""
    return _TIMED.fullmatch(line.strip()) is not None


def _read_line(line: str, place: str) -> Row:
    timed = _TIMED.fullmatch(line)
    if not timed and (meant := _MEANT_TIME.match(line)):
        raise MagiError(
            f"{place}: cannot read the time {meant[0].strip()!r}; write the shot's length in seconds with 's' and a colon, "
            "like '2s: a red circle' or '1.5s: a red circle'"
        )
    seconds = float(timed[1]) if timed else DEFAULT_SECONDS
    words = timed[2].strip() if timed else line
    images = list(_IMAGE.finditer(words))
    if images and words.endswith("]"):
        prompt, keyframe = words[: images[-1].start()], words[images[-1].end() : -1]
        return Row(place, _read_words(prompt, place), seconds, _read_words(keyframe, place))
    return Row(place, _read_words(words, place), seconds)


def _read_words(written: str, place: str) -> str:
    written = written.strip()
    quoted = _json_string(written)
    if quoted is not None:
        return quoted
    if _IMAGE.search(written):
        raise MagiError(f"{place}: a keyframe is written once, at the end of its line, like '[image: first.png]'")
    return written


def _write_words(words: str) -> str:
    try:
        plain = "\n" not in words and "\r" not in words and _read_words(words, "") == words
    except MagiError:
        plain = False
    # An escaped bracket cannot be taken for the start or the end of an [image: ...].
    quoted = json.dumps(words, ensure_ascii=False).replace("[", "\\u005b")
    return words if plain else quoted


def _json_string(written: str) -> str | None:
    if len(written) < 2 or written[0] != '"' or written[-1] != '"':
        return None
    try:
        value = json.loads(written)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


# --- JSON --------------------------------------------------------------------------------------------------------------------


class _Object(dict[str, Any]):
    """A JSON object that remembers which key stood in it twice."""

    twice: str | None = None


def read_json(text: str) -> Document:
    """Read the JSON form ``{"version": 1, "prefix"?: ..., "shots": [{"prompt": ..., "seconds"?: ..., "keyframe"?: ...}]}``.

    Raises MagiError naming the key or the shot; types and limits of the values are not checked here.
    """
    try:
        # Numbers outside of what JSON or we can hold become inf or nan here and are refused with their shot's number.
        document = json.loads(
            text,
            object_pairs_hook=_collect,
            parse_constant=float,
            parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits),
        )
    except RecursionError as error:
        raise MagiError(
            "the storyboard JSON is nested too deeply; a storyboard is one object with a list of shots"
        ) from error
    except json.JSONDecodeError as error:
        raise MagiError(
            f"the storyboard is read as JSON because it starts with a bracket, but it is not valid JSON: {error.msg} "
            f"at line {error.lineno} column {error.colno}"
        ) from error
    _check_keys(document, "the storyboard", required=("version", "shots"), optional=("prefix",))
    version = document["version"]
    if type(version) is not int or version != JSON_VERSION:
        raise MagiError(f"the storyboard's version is {shorten(version)}; this release reads version {JSON_VERSION}")
    shots = document["shots"]
    if not isinstance(shots, list):
        raise MagiError(f"the storyboard's shots is {shorten(shots)}; it must be a list of shots")
    rows = []
    for number, shot in enumerate(shots, 1):
        place = f"shot {number}"
        _check_keys(shot, place, required=("prompt",), optional=("seconds", "keyframe"))
        rows.append(Row(place, shot["prompt"], shot.get("seconds", DEFAULT_SECONDS), shot.get("keyframe")))
    return Document(document.get("prefix", ""), tuple(rows))


def write_json(document: Document) -> str:
    """The JSON form, indented; ``read_json`` of it gives the same values back."""
    shots = []
    for row in document.rows:
        seconds = int(row.seconds) if float(row.seconds).is_integer() else row.seconds
        shot = {"prompt": row.prompt, "seconds": seconds}
        shots.append(shot if row.keyframe is None else shot | {"keyframe": row.keyframe})
    prefix = {"prefix": document.prefix} if document.prefix else {}
    return json.dumps({"version": JSON_VERSION, **prefix, "shots": shots}, ensure_ascii=False, indent=2) + "\n"


def _collect(pairs: Iterable[tuple[str, Any]]) -> _Object:
    collected = _Object()
    for key, value in pairs:
        if key in collected:
            collected.twice = key
        collected[key] = value
    return collected


def _check_keys(value: object, place: str, *, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    if not isinstance(value, _Object):
        raise MagiError(f"{place} is {shorten(value)}; it must be a JSON object with {', '.join(required)}")
    for key in value:
        if key not in required + optional:
            raise MagiError(f"{place} has the unknown key {shorten(key)}; allowed: {', '.join(required + optional)}")
    for key in required:
        if key not in value:
            example = f', for example "version": {JSON_VERSION}' if key == "version" else ""
            raise MagiError(f"{place} lacks the key '{key}'{example}")
    if value.twice is not None:
        raise MagiError(f"{place} has the key {shorten(value.twice)} twice; keep one of them")
