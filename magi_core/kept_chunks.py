"""A finished chunk as a file: its latents, what it was asked to show, which frames are shown."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from magi_core.errors import MagiError, whole_number
from magi_core.making import FRAMES_PER_LATENT, MOST_FRAMES, Finished, Span, checked_plan
from magi_core.tensor_files import DAMAGE, read_tensors, write_tensors

KIND, VERSION = "magi_chunk", 2


def write_chunk(path: Path, finished: Finished) -> None:
    """Write the file, all or nothing; raises MagiError where it cannot be written."""
    header = {
        "version": VERSION,
        "index": finished.index,
        "plan": asdict(finished.plan),
        "spans": [[span.first, span.frames] for span in finished.spans],
    }
    write_tensors(path, {str(n): span.latents for n, span in enumerate(finished.spans)}, KIND, header)


def read_chunk(path: Path) -> Finished:
    """The chunk that ``write_chunk`` wrote, on the CPU; raises MagiError when the file is missing or damaged."""
    header, tensors = read_tensors(path, KIND, "chunk file")
    try:
        if header["version"] > VERSION:
            raise MagiError(f"the chunk file {path} is of a newer version; update comfyui-magi")
        spans = tuple(Span(tensors[str(n)], *shown) for n, shown in enumerate(header["spans"]))
        for span in spans:
            whole_number("frames", span.frames, 1, span.latents.shape[2] * FRAMES_PER_LATENT - span.first)
        return Finished(
            whole_number("index", header["index"], 0, MOST_FRAMES),
            checked_plan(header["plan"]),
            (*spans[:-1], spans[-1]),
        )
    except MagiError:
        raise
    except DAMAGE as error:
        raise MagiError(f"the chunk file {path} is damaged") from error
