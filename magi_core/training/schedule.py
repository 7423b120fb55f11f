"""How far a run is, by steps or by the clock, how fast it learns there, and when it must not go on."""

from __future__ import annotations

import logging
import math
from typing import Protocol

from torch import Tensor
from torch.distributed.tensor import DTensor

from magi_core.errors import MagiError
from magi_core.training.checkpoint import TrainingState

log = logging.getLogger(__name__)


class Length(Protocol):
    """Of settings, those that say how long a run is; exactly one of ``steps`` and ``minutes`` is set."""

    @property
    def steps(self) -> int | None: ...
    @property
    def minutes(self) -> float | None: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def decay_share(self) -> float: ...


def progress(state: TrainingState, length: Length) -> float:
    """How much of the run is done, 0..1."""
    if length.steps is not None:
        return state.step / length.steps
    return state.seconds / (60 * (length.minutes or 0.0))


def rate_scale(state: TrainingState, length: Length) -> float:
    """What learning rates are multiplied by: up in the first steps, down to zero in the last share of the run."""
    return min(1.0, (state.step + 1) / length.warmup_steps, (1 - progress(state, length)) / length.decay_share)


def say_if_done(state: TrainingState, length: Length) -> None:
    """Warn that a run which goes on has nothing left to do."""
    if progress(state, length) >= 1:
        log.warning(
            "the run is finished after step %d and nothing is trained; ask for more to go on with it", state.step
        )


def check_finite(norm: Tensor, step: int) -> None:
    """Raise MagiError where the norm of a step's gradients is no number any more: the weights would be lost, and with the next save the run."""
    if not math.isfinite(norm.full_tensor() if isinstance(norm, DTensor) else norm):
        raise MagiError(
            f"the training diverged at step {step}: its gradients are no finite numbers. Nothing of that was saved; go on with a lower learning rate"
        )
