"""Attention by name: which implementations there are, which of them this machine can run, and which is measured to be the fastest.

Notable:
- ``auto`` is no opinion. It takes the first usable name that ``fastest.json`` lists for the device's class, a table that
  ``benchmarks/attention.py --update`` writes from its results, and torch's own choice on a device that was never measured.
- Every name computes the same numbers up to rounding, but for the lossy ones, which have to be asked for.
- What a kernel cannot do goes the plain way: gradients, float32 where it takes 16 bits only, odd head sizes.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from magi_core.errors import MagiError
from magi_core.kernels import installed
from magi_core.kernels.partial import AttendLse, Partial, by_segment, products
from magi_core.kernels.plain import Attend, attend, attend_lse
from magi_core.kernels.ranges import AttnRange
from magi_core.kernels.sdpa import fused_block

HALVES = (torch.float16, torch.bfloat16)
ALL = (*HALVES, torch.float32)


@dataclass(frozen=True)
class BackendReport:
    """What a machine can do with one name."""

    name: str
    available: bool
    reason: str
    """Why not; empty where it is available."""
    lossy: bool
    """Computes with 8-bit numbers: faster, and the video is not the same. Never chosen by ``auto``."""


@dataclass(frozen=True)
class Backend:
    """One implementation and what it takes."""

    run: Callable[[], AttendLse]
    """Imports and gives the function."""
    why_not: Callable[[torch.device], str]
    dtypes: tuple[torch.dtype, ...] = HALVES
    head_dims: Callable[[int], bool] = lambda d: d % 8 == 0 and d <= 256
    lossy: bool = False
    lse: bool = True
    """Whether it gives the log-sum-exp."""


def attention(name: str, device: torch.device | str) -> Attend:
    """The range attention called ``name`` ("auto", or a name of ``backends``) for tensors on ``device``.

    MagiError for a name that does not exist or that this machine cannot run; the message says what can be had instead.
    """
    backend = _choose(name, torch.device(device))
    if backend is None:
        return attend
    run = backend.run()

    def chosen(q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[AttnRange]) -> Tensor:
        return run(q, k, v, ranges)[0] if _takes(backend, q, k, v) else attend(q, k, v, ranges)

    return chosen


def attention_lse(name: str, device: torch.device | str) -> AttendLse:
    """The same as ``attention``, returning the log-sum-exp as well, for partial results (see ``merge``)."""
    backend = _choose(name, torch.device(device))
    if backend is None:
        return attend_lse
    if not backend.lse:
        raise MagiError(
            f"attention '{name}' gives no partial results, which several devices need; choose 'auto' or another one"
        )
    run = backend.run()

    def chosen(q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[AttnRange]) -> Partial:
        return run(q, k, v, ranges) if _takes(backend, q, k, v) else attend_lse(q, k, v, ranges)

    return chosen


def backends(device: torch.device | str) -> tuple[BackendReport, ...]:
    """Every name but "auto" with whether ``device`` can run it. Imports what is installed; computes next to nothing."""
    place = torch.device(device)
    return tuple(_report(name, place) for name in (PLAIN, *TABLE))


def device_class(device: torch.device | str) -> str:
    """What measurements are filed under: 'cpu', 'cuda sm90', ..."""
    place = torch.device(device)
    if place.type == "cuda" and torch.cuda.is_available():
        return "cuda sm{}{}".format(*torch.cuda.get_device_capability(place))
    return place.type


def fastest() -> dict[str, list[str]]:
    """Device class -> names that were measured to be faster than torch's choice, the fastest first; empty where none is."""
    text = resources.files("magi_core.kernels").joinpath("fastest.json").read_text(encoding="utf-8")
    table: dict[str, list[str]] = json.loads(text)
    return table


def automatic(device: torch.device | str) -> str:
    """The name that "auto" stands for on a device."""
    place = torch.device(device)
    measured = fastest().get(device_class(place), [])
    return next((name for name in measured if _report(name, place).available), PLAIN)


def _choose(name: str, device: torch.device) -> Backend | None:
    """The backend to use; None for torch's own choice."""
    if name == "auto":
        name = automatic(device)
    if name == PLAIN:
        return None
    usable = ", ".join(["auto", *(r.name for r in backends(device) if r.available)])
    if name not in TABLE:
        raise MagiError(
            f"attention is '{name}'; it must be one of: auto, {', '.join([PLAIN, *TABLE])}. Usable here: {usable}"
        )
    report = _report(name, device)
    if not report.available:
        raise MagiError(f"attention '{name}' cannot run on {device}: {report.reason}. Usable here: {usable}")
    return TABLE[name]


def _takes(backend: Backend, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel may be used: it has no backward, and its types and sizes are limited."""
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return not trains and q.dtype in backend.dtypes and backend.head_dims(q.shape[2])


@lru_cache(maxsize=64)
def _report(name: str, device: torch.device) -> BackendReport:
    """Probed once: imports and drivers do not change while a process runs."""
    if name == PLAIN:
        return BackendReport(name, True, "", False)
    reason = TABLE[name].why_not(device)
    return BackendReport(name, not reason, reason, TABLE[name].lossy)


def _always(device: torch.device) -> str:
    return ""


def _needs_gpu(device: torch.device, lowest: tuple[int, int], package: str = "", module: str = "") -> str:
    """Why an NVIDIA kernel cannot run: the card, then the package."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return "it needs an NVIDIA GPU"
    if torch.cuda.get_device_capability(device) < lowest:
        return "it needs an NVIDIA GPU of compute capability {}.{} or newer".format(*lowest)
    return _imports(package, module) if module else ""


def _imports(package: str, module: str, member: str = "") -> str:
    """Why a module cannot be used; empty if it can."""
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        return f"the package '{package}' is not installed"
    except Exception as error:  # a kernel built for another torch or driver raises whatever it likes
        return f"the package '{package}' does not load: {str(error).splitlines()[0] if str(error) else error!r}"
    return f"the package '{package}' is too old, it has no {member}" if member and not hasattr(found, member) else ""


def _sdpa(name: str) -> Backend:
    """One of torch's kernels, tried on a few numbers."""

    def why_not(device: torch.device) -> str:
        if device.type == "cuda" and not torch.cuda.is_available():
            return "it needs an NVIDIA GPU"
        row = torch.zeros(32, 1, 64, dtype=torch.bfloat16, device=device)
        try:
            run()(row, row, row, [AttnRange(0, 32, 0, 32)])[1].sum().item()
        except AttributeError:
            return f"this torch has no such kernel for {device.type}"
        except RuntimeError as error:
            return str(error).splitlines()[0]
        return ""

    def run() -> AttendLse:
        return by_segment(fused_block(name))

    return Backend(run, why_not, ALL if name == "sdpa_efficient" else HALVES)


def _triton() -> AttendLse:
    from magi_core.kernels.triton_ranges import attend_triton

    return attend_triton


def _triton_int8() -> AttendLse:
    from magi_core.kernels.triton_int8 import attend_triton_int8

    return attend_triton_int8


def _flex() -> AttendLse:
    from magi_core.kernels.flex import attend_flex

    return attend_flex


def triton_missing(device: torch.device) -> str:
    """Why ``device`` cannot run our Triton kernels; empty where it can."""
    missing = _imports("triton", "triton")
    if missing:
        return f"{missing}: pip install 'comfyui-magi[kernels]'"
    from magi_core.kernels.triton_ranges import interpreted

    return "" if interpreted() else _needs_gpu(device, (8, 0))


def _why_not_flex(device: torch.device) -> str:
    card = "" if device.type == "cpu" else _needs_gpu(device, (8, 0), "triton", "triton")
    return card or _imports("torch", "torch.nn.attention.flex_attention", "AuxRequest")


def _why_not_int8(device: torch.device) -> str:
    card = _needs_gpu(device, (7, 5))
    return card or _imports("comfy-kitchen", "comfy_kitchen", "int8_attention")


PLAIN = "torch"
"""``attend``: torch chooses the kernel."""

TABLE: dict[str, Backend] = {
    "math": Backend(lambda: by_segment(products, masks=True), _always, ALL, lambda d: True),
    "sdpa_flash": _sdpa("sdpa_flash"),
    "sdpa_efficient": _sdpa("sdpa_efficient"),
    "sdpa_cudnn": _sdpa("sdpa_cudnn"),
    "triton": Backend(_triton, triton_missing, head_dims=lambda d: d <= 128),
    "flex": Backend(_flex, _why_not_flex, ALL, lambda d: 16 <= d <= 256 and d & (d - 1) == 0),
    "flash_attn_2": Backend(
        lambda: by_segment(installed.flash_attn_2, masks=True),
        lambda device: _needs_gpu(device, (8, 0), "flash-attn", "flash_attn"),
    ),
    "flash_attn_3": Backend(
        lambda: by_segment(installed.flash_attn_3, masks=True),
        lambda device: _needs_gpu(device, (9, 0), "flash-attn-3", "flash_attn_interface"),
    ),
    "flash_attn_4": Backend(
        lambda: by_segment(installed.flash_attn_4, masks=True),
        lambda device: _needs_gpu(device, (8, 0), "flash-attn-4", "flash_attn.cute"),
        head_dims=lambda d: d in (64, 96, 128),
    ),
    "magi_ffa": Backend(
        lambda: installed.magi_ffa,
        lambda device: _needs_gpu(device, (9, 0), "magi_attention", "magi_attention.functional"),
        head_dims=lambda d: d in (64, 128),
    ),
    "triton_int8": Backend(_triton_int8, triton_missing, head_dims=lambda d: d <= 128, lossy=True),
    "sage": Backend(
        lambda: by_segment(installed.sage),
        lambda device: _needs_gpu(device, (8, 0), "sageattention", "sageattention"),
        head_dims=lambda d: d in (64, 96, 128),
        lossy=True,
    ),
    "int8": Backend(lambda: by_segment(installed.int8), _why_not_int8, lossy=True, lse=False),
}
"""Every other name. Those of other packages are written against their public interfaces (see ``installed``)."""
