"""The public checkpoint's configuration file, read into ``MagiConfig`` and written from it (spec section 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from magi_core.config import DTYPES, MAX_NUMBER, DiTConfig, MagiConfig, Sampling
from magi_core.errors import MagiError
from magi_core.files import read_json_object


def parse_config(document: Mapping[str, Any]) -> MagiConfig:
    """Read the three objects of a public configuration. Missing fields take the defaults, unknown ones are ignored.

    Raises MagiError naming the field whose value has the wrong type or is not allowed.
    """
    merged: dict[str, Any] = {}
    for part in ("model_config", "runtime_config", "engine_config"):
        section = document.get(part, {})
        if not isinstance(section, Mapping):
            raise MagiError(f"{part} must be a JSON object, not {type(section).__name__}")
        merged.update(section)
    if not merged:
        raise MagiError(
            "this is not a MAGI configuration: model_config, runtime_config and engine_config are all missing"
        )
    renamed = {"video_size_h": "height", "video_size_w": "width"}
    merged = {renamed.get(name, name): value for name, value in merged.items()}
    return MagiConfig(
        dit=DiTConfig(**_pick(DiTConfig, merged)),
        sampling=Sampling(**_pick(Sampling, merged)),
        **_pick(MagiConfig, merged),
    )


def read_config(path: Path) -> MagiConfig:
    """Read a configuration file; raises MagiError when it is missing, no JSON, or not allowed."""
    return parse_config(read_json_object(path))


def config_document(config: MagiConfig) -> dict[str, dict[str, Any]]:
    """The configuration as the public three-object JSON; ``parse_config`` of it gives the same value back."""
    model = {f.name: getattr(config.dit, f.name) for f in fields(DiTConfig)}
    engine = {name: model.pop(name) for name in ("fp8_quant", "distill")}
    model["params_dtype"] = str(model["params_dtype"])
    runtime = {f.name: getattr(config.sampling, f.name) for f in fields(Sampling)}
    for name in ("shortcut_mode", "distill_nearly_clean_chunk_threshold"):
        engine[name] = runtime.pop(name)
    around = {f.name: getattr(config, f.name) for f in fields(MagiConfig) if f.name not in ("dit", "sampling")}
    runtime |= {"video_size_h": around.pop("height"), "video_size_w": around.pop("width")} | around
    runtime = {name: list(value) if isinstance(value, tuple) else value for name, value in runtime.items()}
    return {"model_config": model, "runtime_config": runtime, "engine_config": engine}


def _pick(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``values`` that are fields of the dataclass ``kind``, converted to the field's type."""
    picked = {}
    for field in fields(kind):
        if field.name in values and field.name not in ("dit", "sampling"):
            picked[field.name] = _convert(field.name, values[field.name], str(field.type))
    return picked


def _convert(name: str, value: Any, kind: str) -> Any:
    wrong = MagiError(f"configuration field {name} is {ascii(value)[:80]}; it must be of type {kind}")
    if kind == "torch.dtype":
        dtype = DTYPES.get(str(value).removeprefix("torch."))
        if dtype is None:
            raise MagiError(f"configuration field {name} is {ascii(value)[:80]}; allowed: {', '.join(DTYPES)}")
        return dtype
    if kind.startswith("tuple"):
        item = "int" if "int" in kind else "float"
        if not isinstance(value, list | tuple):
            raise wrong
        return tuple(_convert(name, v, item) for v in value)
    if kind == "bool":
        if not isinstance(value, bool):
            raise wrong
        return value
    if kind in ("int", "float"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_NUMBER:
            raise wrong
        if kind == "int" and value != int(value):
            raise wrong
        return int(value) if kind == "int" else float(value)
    if not isinstance(value, str):
        raise wrong
    return value
