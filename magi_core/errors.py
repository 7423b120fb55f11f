"""The one error that a user is meant to read.

Everything that a person can get wrong (a size, a file, a setting, a storyboard) is reported as a ``MagiError`` whose message
names the input, the value it had, what is allowed and what to do. Command line and nodes show the message without a traceback.
"""

from __future__ import annotations

import reprlib


class MagiError(ValueError):
    """Something the user gave cannot be used; the message says what, and what would work."""


def missing_extra(package: str, extra: str, purpose: str) -> MagiError:
    """The error for an optional package that is not installed.

    >>> str(missing_extra("av", "video", "reading video files"))
    "reading video files needs the package 'av': pip install 'comfyui-magi[video]'"
    """
    return MagiError(f"{purpose} needs the package '{package}': pip install 'comfyui-magi[{extra}]'")


def shorten(value: object) -> str:
    """``repr`` of any value on one short line, for error messages."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxlong = shown.maxother = 60
    try:
        return shown.repr(value)
    except (RecursionError, ValueError):
        return f"<{type(value).__name__}>"


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """``value`` if it is a whole number from ``low`` to ``high``; else a MagiError that names it."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise MagiError(f"{name} is {shorten(value)}; it must be a whole number from {low} to {high}")
    return value
