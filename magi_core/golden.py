"""Reading a folder of golden tensors: recorded inputs and outputs that our numbers must equal.

A folder holds ``manifest.json`` (configurations and cases), the weights of tiny models, and one safetensors file a case with
``in.*`` and ``out.*`` tensors. A folder may leave the outputs out: then ``magi verify --write`` fills them in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from magi_core.config import MagiConfig
from magi_core.config_file import parse_config
from magi_core.errors import MagiError, shorten
from magi_core.files import read_json_object


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be from the recorded one: largest absolute difference, and rms(difference) / rms(recorded)."""

    max_abs: float
    rel_rms: float


@dataclass(frozen=True)
class Case:
    """One recorded case: what went in, what must come out."""

    id: str
    config: str
    file: Path
    meta: Mapping[str, Any]
    output_names: tuple[str, ...]
    tolerance: Mapping[str, Tolerance]

    @property
    def family(self) -> str:
        """The part of the id before the slash: dit_forward, dispatcher, loops, vae, ..."""
        return self.id.split("/")[0]

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Tensors by name, without the ``in.`` prefix."""
        return _read(self.file, "in.")

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """Recorded tensors by name, without the ``out.`` prefix; empty where the folder holds only inputs."""
        return _read(self.file, "out.")


class Golden:
    """A golden folder. ``case("vae/a_decode_T3")``, ``family("vae")``, ``config("a")``, ``weights("a")``."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._manifest = read_json_object(self.folder / "manifest.json")

    def json(self, name: str) -> Any:
        """The parsed content of a JSON file of the folder."""
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise MagiError(f"cannot read {path}: {error.strerror}; a golden folder has a manifest.json") from error
        except ValueError as error:
            raise MagiError(f"{path} is not valid JSON: {error}") from error

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """All tensor cases whose file is there (a subset folder keeps the whole manifest)."""
        return tuple(case for entry in self._manifest.get("cases", ()) if (case := self._case(entry)) is not None)

    def _case(self, entry: dict[str, Any]) -> Case | None:
        """A case of the manifest, or None where its file is absent or no tensors; a file outside of the folder is refused."""
        try:
            file = self.folder / entry["file"]
            if ".." in file.relative_to(self.folder).parts:
                raise ValueError("it leads out of the folder")
            if file.suffix != ".safetensors" or not file.is_file():
                return None
            tolerance = {
                name: Tolerance(limits["max_abs"], limits.get("rel_rms", float("inf")))
                for name, limits in (entry.get("tolerance") or {}).items()
            }
            outputs = tuple(entry.get("outputs") or ())
            return Case(entry["id"], entry.get("config") or "", file, entry.get("meta") or {}, outputs, tolerance)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise MagiError(
                f"a case in {self.folder / 'manifest.json'} cannot be used ({shorten(entry)}): {error!r}"
            ) from error

    def family(self, name: str) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.family == name)

    def case(self, case_id: str) -> Case:
        for case in self.cases:
            if case.id == case_id:
                return case
        raise MagiError(f"no golden case {case_id} in {self.folder}")

    def config_document(self, name: str) -> dict[str, Any]:
        """The configuration's JSON as recorded (a DiT, a VAE or a T5 one)."""
        try:
            document: dict[str, Any] = self._manifest["configs"][name]
        except (KeyError, TypeError) as error:
            raise MagiError(f"{self.folder / 'manifest.json'} has no configuration {shorten(name)}") from error
        return document

    def config(self, name: str) -> MagiConfig:
        return parse_config(self.config_document(name))

    def weights_path(self, name: str) -> Path:
        """The weights of a configuration: a safetensors file, or a folder for a VAE."""
        return self.folder / str(self.config_document(name)["_weights"])

    def weights(self, name: str) -> dict[str, Tensor]:
        return load_file(self.weights_path(name))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of a safetensors file of the folder (``text.safetensors``)."""
        return load_file(self.folder / name)


def _read(path: Path, prefix: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - safe_open is no mapping
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise MagiError(f"cannot read the golden case {path}: {error}") from error


def compare(computed: Tensor, recorded: Tensor) -> tuple[float, float]:
    """(largest absolute difference, rms(difference) / rms(recorded)); infinite where shapes differ or values are not finite."""
    if computed.shape != recorded.shape:
        return float("inf"), float("inf")
    difference = computed.to(torch.float64) - recorded.to(torch.float64)
    if not bool(torch.isfinite(difference).all()):
        return float("inf"), float("inf")
    scale = recorded.to(torch.float64).square().mean().sqrt().item()
    return difference.abs().max().item(), difference.square().mean().sqrt().item() / max(scale, 1e-12)
