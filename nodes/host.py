"""ComfyUI as our host: its folders, progress and interrupts."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import comfy.model_management as management
import folder_paths
from comfy.utils import ProgressBar
from server import PromptServer

from magi_core.checkpoint import find
from magi_core.errors import MagiError

from .pace import Step

T = TypeVar("T")

BUILT_IN = {f"magi-{name}": folder for name, folder in find.BUILT_IN.items()}
"""The models that are part of this pack, in every list of models."""
MODELS = "magi"
"""Our folder in ComfyUI's models folder, and its name in extra_model_paths.yaml: public checkpoints as they were downloaded."""
MARK = f"{MODELS}/"
"""Stands before the names of what lies in that folder."""
MAX_PREFIX = 200
DEPTH = 6
"""How deep checkpoints are looked for: a whole download has ckpt/magi/<model>/inference_weight."""


def add_model_folder() -> None:
    """Make ``models/magi`` known to ComfyUI."""
    folder_paths.add_model_folder_path(MODELS, os.path.join(folder_paths.models_dir, MODELS), is_default=False)


def choices(kind: str | None, holds: Callable[[Path], bool]) -> list[str]:
    """What a loader offers: what is built in, ComfyUI's safetensors files of a kind, and folders below ``models/magi`` that ``holds`` accepts."""
    files = [name for name in folder_paths.get_filename_list(kind) if name.endswith(".safetensors")] if kind else []
    folders = {name for root in _roots() for name in _folders(root, holds)}
    return [*BUILT_IN, *files, *sorted(folders)]


def chosen(kind: str | None, name: str) -> Path:
    """The path of a choice. Raises MagiError when it is not there (any more)."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if name.startswith(MARK):
        inside = Path(name.removeprefix(MARK))
        for root in _roots():
            if ".." not in inside.parts and not inside.anchor and (root / inside).is_dir():
                return root / inside
    elif kind and (found := folder_paths.get_full_path(kind, name)):
        return Path(found)
    raise MagiError(
        f"{name!r} is not in ComfyUI's folders {f'{kind} or ' if kind else ''}{MODELS}; put it there and reload the page"
    )


def _roots() -> list[Path]:
    return [Path(root) for root in folder_paths.get_folder_paths(MODELS) if os.path.isdir(root)]


def _folders(root: Path, holds: Callable[[Path], bool]) -> Iterator[str]:
    for path, folders, _ in os.walk(root):
        inside = Path(path).relative_to(root)
        if len(inside.parts) >= DEPTH:
            folders.clear()
        if inside.parts and holds(Path(path)):
            yield MARK + inside.as_posix()


def watcher(node: str | None) -> Callable[[Step], None]:
    """Shows denoise steps as a node's progress with the time left, and raises ComfyUI's interrupt."""
    bar: ProgressBar | None = None

    def watch(step: Step) -> None:
        nonlocal bar
        management.throw_exception_if_processing_interrupted()
        if bar is None:
            bar = ProgressBar(max(1, step.steps), node_id=node)
        bar.update_absolute(step.step, max(1, step.steps))
        if node is not None and step.seconds_left is not None:
            flying = ", ".join(str(flying.chunk + 1) for flying in step.flying)
            text = f"step {step.step} of {step.steps}, about {step.seconds_left:.0f} s left"
            say(text + (f", chunks in flight: {flying}" if flying else ""), node)

    return watch


def say(text: str, node: str | None) -> None:
    """Show a line under a node."""
    if node is not None:
        PromptServer.instance.send_progress_text(text, node)


def counted(parts: Sequence[T], node: str | None) -> Iterator[T]:
    """The parts, one after the other, as a node's progress; raises ComfyUI's interrupt."""
    bar = ProgressBar(len(parts), node_id=node)
    for done, part in enumerate(parts):
        management.throw_exception_if_processing_interrupted()
        yield part
        bar.update_absolute(done + 1, len(parts))


def temporary_path(suffix: str) -> Path:
    """A new name in ComfyUI's temporary folder. Raises MagiError where that cannot be made."""
    folder = Path(folder_paths.get_temp_directory()) / MODELS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MagiError(
            f"cannot write in ComfyUI's temporary folder {folder}: {error.strerror}. Free space, or start ComfyUI with another --temp-directory"
        ) from error
    return folder / f"{uuid.uuid4().hex}{suffix}"


def caption_folder() -> Path:
    """Where encoded prompts are kept."""
    return Path(folder_paths.get_user_directory()) / MODELS / "captions"


def clusters_file() -> Path:
    """Where whoever runs this ComfyUI lists the Ray clusters that workflows may name, one address a line."""
    return Path(folder_paths.get_user_directory()) / MODELS / "ray_clusters.txt"


def input_folder() -> Path:
    return Path(folder_paths.get_input_directory())


def check_prefix(prefix: str) -> None:
    """Raise MagiError unless ``prefix`` names something in ComfyUI's output folder."""
    if not prefix.strip() or len(prefix) > MAX_PREFIX or not prefix.isprintable():
        raise MagiError(
            f"filename_prefix is {prefix[:60]!r}; give a name of 1 to {MAX_PREFIX} printable characters like 'magi/session'"
        )
    root = os.path.abspath(folder_paths.get_output_directory())
    inside = Path(os.path.abspath(os.path.join(root, prefix.replace("\\", "/"))))
    if not inside.is_relative_to(root) or str(inside) == root:
        raise MagiError(
            f"filename_prefix is {prefix[:60]!r}; it must stay in ComfyUI's output folder: leave '..' and the drive out"
        )


def output_path(prefix: str, suffix: str) -> tuple[Path, dict[str, Any]]:
    """The next free numbered name in ComfyUI's output folder, and how the page is told of it. Raises MagiError as ``check_prefix``."""
    check_prefix(prefix)
    folder, name, number, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    file = f"{name}_{number:05}_{suffix}"
    return Path(folder) / file, {"filename": file, "subfolder": subfolder, "type": "output"}
