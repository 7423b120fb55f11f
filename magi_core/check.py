"""A report on a model's files: what was found, what is missing, what this machine can do with it.

Nothing is loaded; only headers are read, unless ``deep`` asks for a look at every value.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from magi_core.checkpoint.find import CheckpointFiles, find_checkpoint
from magi_core.checkpoint.layout import compare_layout
from magi_core.checkpoint.load import check_values
from magi_core.checkpoint.reader import Weights, open_weights, read_tensors
from magi_core.cost.memory import MemoryPlan, Use, plan_memory, proposals, size_text
from magi_core.errors import MagiError
from magi_core.kernels import backends
from magi_core.kernels.names import automatic, device_class
from magi_core.text import gguf

LARGE = 1024
"""Width from which on a transformer is slow on a CPU."""
OPTIONAL_PACKAGES = {
    "transformers": "text encoder",
    "sentencepiece": "the release's tokeniser",
    "gguf": "text encoders in GGUF",
    "ftfy": "caption cleaning",
    "bs4": "caption cleaning",
    "av": "video files",
    "cv2": "scoring",
    "zstandard": ".zst shards",
    "tqdm": "progress bars",
}


@dataclass(frozen=True)
class Part:
    """One part of the model and what its files hold."""

    name: str
    path: Path
    nbytes: int
    parameters: int
    dtypes: str


@dataclass(frozen=True)
class Device:
    """A place to run on; ``memory`` is its total, ``free`` what is free now, in bytes."""

    name: str
    memory: int
    free: int
    is_gpu: bool


@dataclass(frozen=True)
class CheckReport:
    """What ``check`` learnt; ``text()`` is for people."""

    files: CheckpointFiles
    parts: tuple[Part, ...]
    problems: tuple[str, ...]
    plan: MemoryPlan | None
    devices: tuple[Device, ...]
    attention: tuple[str, ...]
    packages: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every part is there and nothing is wrong with it."""
        return not self.problems and not self.files.missing

    def text(self) -> str:
        """The report as lines of text."""
        config = self.files.config
        lines = [
            f"model            {self.files.name}, {config.width} x {config.height}, {config.sampling.num_steps} steps"
        ]
        for part in self.parts:
            count = f"{_count(part.parameters)} values, {part.dtypes}" if part.parameters else ""
            lines.append(f"{part.name:<16} {size_text(part.nbytes):>9}  {count}  {part.path}")
        lines += [f"missing          {text}" for text in self.files.missing]
        lines += [f"problem          {text}" for text in self.problems]
        lines += [f"note             {text}" for text in self.files.notes]
        if self.plan:
            lines.append(
                f"memory needed    {size_text(self.plan.total)}: weights {size_text(self.plan.weights)}, KV cache "
                f"{size_text(self.plan.kv_cache)}, activations {size_text(self.plan.activations)}, VAE {size_text(self.plan.beside)}"
            )
            lines += [f"{'on this machine':<16} {verdict}" for verdict in self.verdicts()]
        lines += [f"{'attention':<16} {kernel}" for kernel in self.attention]
        lines += [f"{'packages':<16} {package}" for package in self.packages]
        return "\n".join(lines)

    def verdicts(self) -> tuple[str, ...]:
        """One sentence a device: does the model fit, and what to expect."""
        plan = self.plan
        return () if plan is None else tuple(_verdict(device, plan.use) for device in self.devices)


def check(source: str | Path, deep: bool = False, *, cache: Path | None = None) -> CheckReport:
    """Look at the model that ``source`` names (see ``find_checkpoint``).

    ``deep``: also read every value of the transformer and report NaN and Inf (unpacks ``.zst`` shards, into ``cache`` if given).
    Unfitting weights become ``problems``; MagiError is raised where ``source`` names no model, or one without a configuration
    whose tensors do not make up a MAGI-1 DiT. A changed bit inside the weights cannot be seen: the format has no checksums.
    """
    files = find_checkpoint(source)
    parts, problems = [], []
    weights: Weights | None = None
    for name, path in (("transformer", files.dit), ("VAE", files.vae), ("text encoder", files.t5)):
        if path is None:
            continue
        try:
            if path.suffix == gguf.SUFFIX:
                parts.append(_gguf_part(name, path))
                continue
            opened = [open_weights(file) for file in _weight_files(name, path)]
            parts.append(_part(name, path, opened))
            if name == "transformer":
                (weights,) = opened
                compare_layout(weights.tensors, files.config.dit, path)
                if deep:
                    for tensor_name, tensor in read_tensors(weights, cache):
                        check_values(tensor_name, tensor, path)
        except MagiError as error:
            problems.append(str(error))
    if files.special_tokens is not None:
        parts.append(Part("special tokens", files.special_tokens, files.special_tokens.stat().st_size, 0, ""))
    plan = None
    if weights is not None and not problems:
        beside = sum(part.nbytes for part in parts if part.name == "VAE")
        plan = plan_memory(replace(Use.of(files.config), beside=beside, gpu=False))
    return CheckReport(files, tuple(parts), tuple(problems), plan, devices(), attention_kernels(), packages())


def devices() -> tuple[Device, ...]:
    """The CPU and every CUDA GPU of this machine."""
    try:
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        memory, free = page * total, page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        memory = free = 0
    found = [Device(f"CPU, {os.cpu_count()} cores", memory, free, False)]
    for index in range(torch.cuda.device_count()):
        free, memory = torch.cuda.mem_get_info(index)
        found.append(Device(f"GPU {index}, {torch.cuda.get_device_name(index)}", memory, free, True))
    return tuple(found)


def attention_kernels() -> tuple[str, ...]:
    """What "auto" is here, and every name: usable or why not."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    lossy = "; 8-bit: faster, not the same video"
    return (
        f"torch {torch.__version__} on {device_class(place)}: 'auto' is '{automatic(place)}'",
        *(f"{r.name}: {r.reason or 'usable'}{lossy if r.lossy else ''}" for r in backends(place)),
    )


def packages() -> tuple[str, ...]:
    """Optional packages: what those that are not installed would be for."""
    absent = [f"{name} ({purpose})" for name, purpose in OPTIONAL_PACKAGES.items() if not _installed(name)]
    return (
        f"not installed: {', '.join(absent)}"
        if absent
        else "all that reading, writing and encoding can use are installed",
    )


def _weight_files(name: str, path: Path) -> list[Path]:
    """The files or folders to open for a part; only the transformer follows an index."""
    return [path] if name == "transformer" or path.is_file() else sorted(path.glob("*.safetensors"))


def _part(name: str, path: Path, opened: list[Weights]) -> Part:
    dtypes: Counter[str] = Counter()
    for weights in opened:
        for info in weights.tensors.values():
            dtypes[str(info.dtype).removeprefix("torch.")] += info.nbytes
    return Part(name, path, sum(w.nbytes for w in opened), sum(w.parameters for w in opened), _shares(dtypes))


def _gguf_part(name: str, path: Path) -> Part:
    tensors = gguf.open_gguf(path).values()
    kinds: Counter[str] = Counter()
    for tensor in tensors:
        kinds[tensor.kind] += tensor.nbytes
    return Part(name, path, kinds.total(), sum(math.prod(tensor.shape) for tensor in tensors), _shares(kinds))


def _shares(kinds: Counter[str]) -> str:
    """The kinds of number, the one with the most bytes first."""
    return " + ".join(kind for kind, _ in kinds.most_common())


def _verdict(device: Device, use: Use) -> str:
    use = replace(use, gpu=device.is_gpu)
    plan = plan_memory(use)
    need = size_text(plan.total)
    has = (
        f"has {size_text(device.memory)}, {size_text(device.free)} free"
        if device.memory
        else "does not tell its memory"
    )
    if device.memory and not plan.fits(device.memory):
        others = [other.text() for other in proposals(use, device.memory)]
        advice = f"what would: {'; '.join(others)}" if others else "use a machine with more memory"
        return f"{device.name}: does not fit, needs {need} and {has}; {advice}"
    if not device.is_gpu:
        large = use.config.dit.hidden_size >= LARGE
        speed = (
            "fits, but a model of this size takes hours a step on a CPU" if large else "fits, and is fast enough here"
        )
        return f"{device.name}: {speed} (needs {need}, {has})"
    busy = "" if plan.fits(device.free) else ", once other programs give memory back"
    return f"{device.name}: fits{busy} (needs {need}, {has})"


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module without a spec, put in place by a host
        return True


def _count(values: int) -> str:
    return f"{values / 1e9:.2f} B" if values >= 1e9 else f"{values / 1e6:.2f} M"
