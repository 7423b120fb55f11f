"""From files to a model: built without memory, then every parameter takes the tensor of its name.

Exact: names, shapes and dtypes must fit or nothing is loaded. A tensor keeps the dtype it is stored in wherever the model
computes in that dtype; otherwise it is converted once, straight from the file's (spec section 4 and 5: float32 for embedders,
output and some norms, fp8 as stored, ``params_dtype`` for the rest).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from magi_core.checkpoint.find import CheckpointFiles, find_checkpoint
from magi_core.checkpoint.layout import FP8, compare_layout
from magi_core.checkpoint.reader import open_weights, read_tensors
from magi_core.config import DiTConfig
from magi_core.errors import MagiError
from magi_core.model.dit import MagiDiT

logger = logging.getLogger(__name__)

SMALL = 1 << 20
"""Tensors up to this many values are checked for NaN on every load (all norms, biases, scales); the rest by ``check --deep``."""


def load_dit(
    source: str | Path | CheckpointFiles,
    config: DiTConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    cache: Path | None = None,
) -> MagiDiT:
    """The transformer of a checkpoint, in evaluation mode.

    ``source``: what ``find_checkpoint`` found or takes; with ``config`` it may be any weights file or folder.
    ``dtype``: what to compute in, instead of the configuration's ``params_dtype``. ``cache``: folder for unpacked ``.zst``
    shards (default: beside them). Tensors are read one at a time; on the CPU those that keep their dtype stay mapped to the file.
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
    weights = open_weights(Path(source))
    compare_layout(weights.tensors, config, weights.path)
    with torch.device("meta"):
        model = MagiDiT(config)
    wanted = model.state_dict()
    state = {}
    for name, tensor in read_tensors(weights, cache):
        if tensor.numel() <= SMALL:
            check_values(name, tensor, weights.path)
        state[name] = tensor.to(device=device, dtype=wanted[name].dtype)
    model.load_state_dict(state, assign=True)
    logger.info("loaded %s: %d tensors, %.2f GB", weights.path, len(state), weights.nbytes / 1e9)
    return model.eval()


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
