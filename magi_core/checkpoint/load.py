"""From files to a model: built without memory, then every parameter takes the tensor of its name.

Exact: names, shapes and dtypes must fit or nothing is loaded. A tensor keeps the dtype it is stored in wherever the model
computes in that dtype; otherwise it is converted once, straight from the file's (spec section 4 and 5: float32 for embedders,
output and some norms, fp8 as stored, ``params_dtype`` for the rest). Wherever the weights are to live, they are read one tensor at a
time and lie in memory once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from magi_core.checkpoint.find import CheckpointFiles, find_checkpoint
from magi_core.checkpoint.layout import FP8, LAYERS, compare_layout, projections
from magi_core.checkpoint.reader import open_weights, read_tensors
from magi_core.config import DiTConfig
from magi_core.errors import MagiError
from magi_core.kernels import Attend, attend
from magi_core.kernels.fused_plain import quantise_rows
from magi_core.memory.streaming import Place, stream
from magi_core.model.dit import MagiDiT
from magi_core.model.fp8 import RowFp8Linear
from magi_core.model.layers import keep_layers
from magi_core.model.linear import Operations, managed, swap_linears
from magi_core.model.origin import origin, sample

logger = logging.getLogger(__name__)

SMALL = 1 << 20
"""Tensors up to this many values are checked for NaN on every load (all norms, biases, scales); the rest by ``check --deep``."""
ALIGNMENT = 16
"""Bytes. On a CPU, products of few rows round differently where weights do not begin at a multiple, as in some files; copies do."""


def load_dit(
    source: str | Path | CheckpointFiles,
    config: DiTConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    cache: Path | None = None,
    attend: Attend = attend,
    weights: Place = "resident",
    fp8: bool = False,
    layers: range | None = None,
    operations: Operations | None = None,
) -> MagiDiT:
    """The transformer of a checkpoint, in evaluation mode.

    ``source``: what ``find_checkpoint`` found or takes; with ``config`` it may be any weights file or folder.
    ``dtype``: what to compute in, instead of the configuration's ``params_dtype``. ``cache``: folder for unpacked ``.zst``
    shards (default: beside them). Tensors are read one at a time; on the CPU those that keep their dtype stay mapped to the file.
    ``weights``: "streamed" keeps the layers in host memory, and ``device`` receives only what is not part of a layer; they are then no
    parameters of the model, and follow the device of what it is given. ``fp8``: quantise the matrices that the public fp8
    checkpoints quantise (lossy, see ``RowFp8Linear``); those checkpoints themselves stay as they are.
    ``layers``: only these are read, and the model has no others.
    ``operations``: a host's layers in place of torch's, which cast or move weights as they are used; not those of streamed layers.
    A host that moves layers one by one moves ``null_caption`` too: its device is taken for the model's.
    Raises MagiError when the weights are missing or damaged, do not fit the configuration, or hold NaN or Inf.
    """
    if config is None or isinstance(source, CheckpointFiles):
        files = source if isinstance(source, CheckpointFiles) else find_checkpoint(source)
        config = config or files.config.dit
        if files.dit is None:
            raise MagiError(files.missing[0])
        source = files.dit
    if dtype is not None:
        config = replace(config, params_dtype=dtype)
    stored = open_weights(Path(source))
    compare_layout(stored.tensors, config, stored.path)
    model = empty_dit(config, attend=attend, fp8=fp8)
    if layers is not None:
        keep_layers(model.videodit_blocks, layers)
    host = _stream(model) if weights == "streamed" else {}
    wanted, state = {**model.state_dict(), **host}, {}
    if operations is not None:  # a host's layers may have no weights before they are loaded
        swap_linears(model, managed(operations))
    samples = {}
    for name, tensor in read_tensors(stored, cache):
        if name not in wanted:  # a layer that is not asked for; it is mapped, not read
            continue
        if tensor.numel() <= SMALL:
            check_values(name, tensor, stored.path)
        samples[name] = sample(tensor)
        for part, value in _parts(name, tensor, wanted[name].dtype, device):
            if part in host:
                host[part].copy_(value)
            else:
                value = value.to(device=device, dtype=wanted[part].dtype)
                # Large weights that a host will move first stay mapped from the file until then.
                copied = value.data_ptr() % ALIGNMENT and (operations is None or value.numel() <= SMALL)
                state[part] = value.clone() if copied else value
    model.load_state_dict(state, assign=True)
    model.origin = origin(model, samples)
    logger.info("loaded %s: %d tensors, %.2f GB", stored.path, len(stored.tensors), stored.nbytes / 1e9)
    return model.train(False)


def empty_dit(config: DiTConfig, *, attend: Attend = attend, fp8: bool = False) -> MagiDiT:
    """The network without memory, on the meta device; ``fp8``: with the layers that are quantised on load."""
    with torch.device("meta"):
        model = MagiDiT(config, attend)
        if fp8:
            swap_linears(model, _quantised(config))
    return model


def _quantised(config: DiTConfig) -> Callable[[str, nn.Linear], nn.Module]:
    """For ``swap_linears``: 8 bit layers where the public fp8 checkpoints have them, all but those of the first and last layer."""
    inner = {f"{LAYERS}{layer}.{name}" for layer in range(1, config.num_layers - 1) for name in projections(config)}

    def make(name: str, layer: nn.Linear) -> nn.Module:
        return RowFp8Linear(layer.in_features, layer.out_features, config.params_dtype) if name in inner else layer

    return make


def _stream(model: MagiDiT) -> dict[str, Tensor]:
    """The host memory of all layers, by the tensors' public names."""
    layers = stream(model)
    return {f"{LAYERS}{i}.{name}": tensor for i in layers.modules for name, tensor in layers.host(i).items()}


def _parts(name: str, tensor: Tensor, wanted: torch.dtype, device: str | torch.device) -> Iterator[tuple[str, Tensor]]:
    """What a tensor of the file becomes: itself, or its quantised values and their scales."""
    if wanted != FP8 or tensor.dtype == FP8:
        yield name, tensor
        return
    values, scale = quantise_rows(tensor.to(device))
    yield name, values
    yield f"{name}_scale", scale.t()


def check_values(name: str, tensor: Tensor, path: Path) -> None:
    """Raise MagiError if a value is NaN or infinite, or a scale of an fp8 layer is not positive. Works in slices."""
    for part in torch.split(tensor.reshape(-1), SMALL):
        values = part.float() if tensor.dtype == FP8 else part
        if not bool(torch.isfinite(values).all()):
            raise MagiError(f"{path} holds NaN or infinite values in {name}; the file is damaged. Download it again")
        if name.endswith("_scale") and not bool((values > 0).all()):
            raise MagiError(
                f"{path} holds a scale that is not positive in {name}; the file is damaged. Download it again"
            )
