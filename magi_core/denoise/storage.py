"""A session as one safetensors file: its settings as JSON in the header, everything else as tensors.

What is read back continues to the same bits. A damaged byte is noticed (see ``tensor_files``). The file says which model made it: the
configuration field by field, and digests of the weights (see ``model.origin``), so that another model's session is refused with the
difference named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magi_core.config import DiTConfig, Sampling
from magi_core.denoise.schedule import ONE_SCENE, Schedule
from magi_core.denoise.state import Position, SessionState
from magi_core.errors import MagiError, shorten, whole_number
from magi_core.model import KVCache, MagiDiT
from magi_core.model.origin import OUTPUT, SAMPLE, output_digest
from magi_core.tensor_files import DAMAGE, read_header, read_tensors, write_tensors
from magi_core.text.caption import Caption

VERSION = 3
"""1 had no hash, 2 no scenes."""
HEADER = "magi_session"
MAX_SIDE = 4096
"""Of latents."""
MAX_COUNT = 1 << 40
"""No video has more frames, chunks or steps."""


class OtherModel(MagiError):
    """A session of another model than the one that is to go on with it."""


@dataclass(frozen=True, eq=False)
class Stored:
    """What a session file holds."""

    sampling: Sampling
    height: int
    width: int
    seed: int
    prefix_frames: int
    null: Caption
    noise: Tensor | None
    state: SessionState
    notes: Mapping[str, str]
    """Of whoever keeps the session, given back as they were."""
    extra: Mapping[str, Tensor]
    """The same for tensors."""


def write_session(path: Path, stored: Stored, model: MagiDiT) -> None:
    """Write the file, all or nothing; raises MagiError when the folder cannot be written."""
    state = stored.state
    distinct = list({id(caption): caption for caption in state.captions.values()}.values())
    place = {id(caption): i for i, caption in enumerate(distinct)}
    tensors = {
        "null": stored.null.embedding,
        **_named("caption", dict(enumerate(caption.embedding for caption in distinct))),
        **_named("held", state.held),
        **_named("in_flight", state.in_flight),
        **_named("clean", state.clean),
        **_named("cache", {} if state.cache is None else state.cache.state()),
        **_named("extra", stored.extra),
        **({} if stored.noise is None else {"noise": stored.noise}),
    }
    header = {
        "version": VERSION,
        "model": {**_model_fields(model), **model.origin},
        "sampling": asdict(stored.sampling),
        "position": asdict(state.position),
        "scenes": list(state.scenes),
        "captions": {chunk: place[id(caption)] for chunk, caption in state.captions.items()},
        "notes": dict(stored.notes),
        "tensors": sorted(tensors),
        **{name: getattr(stored, name) for name in ("height", "width", "seed", "prefix_frames")},
    }
    write_tensors(path, tensors, HEADER, header)


def read_session(path: Path, model: MagiDiT) -> Stored:
    """Read the file onto the model's device.

    Raises MagiError when the file is missing, damaged, of a newer version, or was made with another model.
    """
    header, tensors = read_tensors(path, HEADER, "session file", model.null_caption.device)
    try:
        _check_made_by(path, header, model)
    except MagiError:
        raise
    except DAMAGE as error:
        raise _damaged(path) from error
    try:
        stored = _parse(header, tensors)
        whole = _is_whole(stored, model.config)
    except DAMAGE as error:  # a MagiError about one setting too: settings of a file are not the user's
        raise _damaged(path) from error
    if not whole:
        raise _damaged(path)
    return stored


def read_size(path: Path) -> tuple[int, int, Sampling]:
    """Height and width of a session's latents and its settings: how much its model has to hold. Reads the file's header alone.

    Raises MagiError when the file is missing or damaged.
    """
    header = read_header(path, HEADER, "session file")
    try:
        return _size(header)
    except DAMAGE as error:
        raise _damaged(path) from error


def _size(header: Mapping[str, Any]) -> tuple[int, int, Sampling]:
    height, width = (whole_number(name, header[name], 1, MAX_SIDE) for name in ("height", "width"))
    sampling: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in header["sampling"].items()}
    return height, width, Sampling(**sampling)


def _damaged(path: Path) -> MagiError:
    return MagiError(f"the session file {path} is damaged; start the video again or go on from its last frames")


def _parse(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Stored:
    if header["tensors"] != sorted(tensors):
        raise ValueError("tensors are missing")
    height, width, sampling = _size(header)
    for name, value in {"prefix_frames": header["prefix_frames"], **header["position"]}.items():
        if value is not None or name != "drain_at":
            whole_number(name, value, 0, MAX_COUNT)
    scenes = header["scenes"] if header["version"] > 2 else ONE_SCENE
    cache = _group("cache", tensors)
    captions = {int(i): _caption(embedding) for i, embedding in _group("caption", tensors).items()}
    state = SessionState(
        position=Position(**header["position"]),
        captions={int(chunk): captions[place] for chunk, place in header["captions"].items()},
        held={int(chunk): t for chunk, t in _group("held", tensors).items()},
        in_flight={int(chunk): t for chunk, t in _group("in_flight", tensors).items()},
        clean={int(chunk): t for chunk, t in _group("clean", tensors).items()},
        cache=KVCache.from_state(cache) if cache else None,
        # The first files of version 3 name the first scene twice where it begins with a keyframe.
        scenes=tuple(sorted({whole_number("a scene", scene, 0, MAX_COUNT) for scene in scenes})),
    )
    return Stored(
        sampling=sampling,
        height=height,
        width=width,
        null=_caption(tensors["null"]),
        noise=tensors.get("noise"),
        state=state,
        notes={str(name): str(note) for name, note in header["notes"].items()},
        extra=_group("extra", tensors),
        **{name: header[name] for name in ("seed", "prefix_frames")},
    )


def _is_whole(stored: Stored, config: DiTConfig) -> bool:
    """Whether everything that later steps need is there, in the right shape."""
    state, position, schedule = stored.state, stored.state.position, Schedule.of(stored.sampling)
    k, width = schedule.stage_steps, stored.sampling.chunk_width
    if not 0 <= position.offset <= position.end <= position.planned or position.clock < position.offset * k:
        return False
    oldest = position.oldest(schedule)
    if len(state.captions) != position.planned - oldest:  # before a range of that length is made
        return False
    frames = (1, config.latent_channels, width, stored.height, stored.width)
    image = (*frames[:2], *frames[3:])
    channels = config.caption_channels
    captions = (stored.null, *state.captions.values())
    clean = {*range(position.first_needed(schedule, config.num_layers), oldest)}
    clean |= {scene for scene in state.scenes if stored.sampling.anchor and scene < oldest}
    return (
        position.steps_left(schedule) >= 0
        and _prefix_is_whole(stored, oldest)
        and set(state.captions) == set(range(oldest, position.planned))
        and set(state.in_flight) == set(range(oldest, min(position.end, -(-position.clock // k))))
        and set(state.clean) >= clean
        and all(latents.shape == frames for latents in (*state.in_flight.values(), *state.clean.values()))
        and all(
            latents.dtype == torch.float32 and bool(latents.isfinite().all())
            for latents in (*state.in_flight.values(), *state.clean.values(), *state.held.values())
        )
        and all(
            held.shape[:2] + held.shape[3:] == image and 1 <= held.shape[2] <= width for held in state.held.values()
        )
        and all(caption.channels == channels for caption in captions)
        and (stored.noise is None or _is_noise_of(stored.noise, image, position.planned * width))
        and _cache_is_whole(stored, config)
    )


def _is_noise_of(noise: Tensor, image: tuple[int, ...], frames: int) -> bool:
    return noise.shape[:2] + noise.shape[3:] == image and noise.shape[2] >= frames and noise.dtype == torch.float32


def _prefix_is_whole(stored: Stored, oldest: int) -> bool:
    """Whether the prefix's last, incomplete chunk is there as long as it is not finished."""
    chunk, frames = divmod(stored.prefix_frames, stored.sampling.chunk_width)
    if not frames or chunk < oldest:
        return chunk <= oldest
    return chunk == oldest and chunk in stored.state.held and stored.state.held[chunk].shape[2] == frames


def _cache_is_whole(stored: Stored, config: DiTConfig) -> bool:
    position, cache, schedule = stored.state.position, stored.state.cache, Schedule.of(stored.sampling)
    if cache is None:
        return position.clock == position.offset * schedule.stage_steps
    oldest = position.oldest(schedule)
    owed = oldest > position.offset and position.clock % schedule.stage_steps == 0  # the next step stores it
    first = schedule.first_read(position.offset, position.clock)
    if position.steps_left(schedule):
        step = schedule.step(position.offset, position.end, position.clock, stored.state.scenes)
        first = first if step.anchor else min(first, *(start for start, _ in step.kv_chunks))
    read = range(first, oldest - owed)
    area = (stored.height // config.patch_size) * (stored.width // config.patch_size)
    tokens = stored.sampling.chunk_width // config.t_patch_size * area
    rows = (tokens, config.num_query_groups, 2 * config.kv_channels)
    return set(cache.chunks) >= set(read) and all(
        part.shape == rows and part.dtype == config.params_dtype
        for layer in range(config.num_layers)
        for part in cache.read(layer, read.start, read.stop)
    )


def _caption(embedding: Tensor) -> Caption:
    return Caption(embedding, torch.ones(len(embedding)))


def _named(group: str, tensors: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    return {f"{group}.{name}": tensor for name, tensor in tensors.items()}


def _group(group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{group}."): t for name, t in tensors.items() if name.startswith(f"{group}.")}


def fingerprint(model: MagiDiT) -> str:
    """A short name for what must be the same so that a session can go on."""
    return hashlib.sha256(repr(sorted(_model_fields(model).items())).encode()).hexdigest()[:16]


def _model_fields(model: MagiDiT) -> dict[str, str]:
    """What must be the same for the numbers to go on: every configuration field, and the weights."""
    config = {field.name: str(getattr(model.config, field.name)) for field in fields(DiTConfig)}
    return {**config, OUTPUT: model.origin.get(OUTPUT) or output_digest(model)}


def _check_made_by(path: Path, header: Mapping[str, Any], model: MagiDiT) -> None:
    """Raise MagiError for a file of another version of this program or of another model."""
    if header["version"] not in range(1, VERSION + 1):
        raise MagiError(
            f"the session file {path} has version {shorten(header['version'])}, this program reads {VERSION}; update comfyui-magi"
        )
    made, present = header["model"], {**_model_fields(model), **model.origin}
    # Earlier versions wrote the output layer as it was, a LoRA that was merged with it included.
    if made.get(OUTPUT) == output_digest(model):
        present[OUTPUT] = made[OUTPUT]
    not_said = {SAMPLE} - made.keys()  # by earlier versions, or of a model that was not read from a file
    differs = [name for name in present if name not in not_said and made.get(name) != present[name]]
    if differs:
        found = ", ".join(f"{name} {made.get(name)!s:.20} instead of {present[name]:.20}" for name in differs)
        raise OtherModel(f"the session {path} was made with another model ({found}); load the model it was made with")
