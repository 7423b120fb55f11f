"""What a run is made from, noted beside it: the same command goes on with a run, and no other one takes it for its own.

A training state holds tensors alone, which fit any run of a model of the same sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from magi_core.errors import MagiError
from magi_core.files import atomic_write, read_json_object

ORIGIN_FILE = "origin.json"
MODEL_FILES = ("config.json", "adapter_config.json")


def claim(made: Path, work: Path, origin: Mapping[str, str]) -> None:
    """Begin a run in the folder ``work`` that makes ``made``, a file or a model folder, or go on with the one that is there.

    origin: by name, what the run is made from. Raises MagiError where the run in ``work`` is made from something else, and where ``made``
    is there although no run has begun, since it would be replaced.
    """
    path = work / ORIGIN_FILE
    if path.exists():
        begun = read_json_object(path)
        others = [
            f"{name} {begun.get(name)} instead of {value}" for name, value in origin.items() if begun.get(name) != value
        ]
        if others:
            raise MagiError(
                f"{work} holds a run that was begun with {'; '.join(others)}. Choose another --output, or delete that folder and what the run made"
            )
        return
    if not any(work.glob("*.safetensors")) and _is_there(made):
        raise MagiError(f"{made} is there already, and no run of this command makes it; choose another --output")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MagiError(f"cannot make the folder {work}: {error.strerror or error}. Choose another --output") from error
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(dict(origin), indent=2) + "\n", encoding="utf-8")


def _is_there(made: Path) -> bool:
    return made.is_file() or any((made / name).exists() for name in MODEL_FILES)
