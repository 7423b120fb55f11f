"""The one error that a user is meant to read.

Everything that a person can get wrong (a size, a file, a setting, a storyboard) is reported as a ``MagiError`` whose message
names the input, the value it had, what is allowed and what to do. Command line and nodes show the message without a traceback.
"""

from __future__ import annotations


class MagiError(ValueError):
    """Something the user gave cannot be used; the message says what, and what would work."""


def missing_extra(package: str, extra: str, purpose: str) -> MagiError:
    """The error for an optional package that is not installed.

    >>> str(missing_extra("av", "video", "reading video files"))
    "reading video files needs the package 'av': pip install 'comfyui-magi[video]'"
    """
    return MagiError(f"{purpose} needs the package '{package}': pip install 'comfyui-magi[{extra}]'")
