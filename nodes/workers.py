"""Processes that run a model for ComfyUI's own, which only drives: they start when first needed and stay for the next video."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from magi_core.cost.memory import Use
from magi_core.denoise.guidance import Runner
from magi_core.denoise.session import Session
from magi_core.memory.streaming import Place
from magi_core.parallel import Engine, FromFiles, start
from magi_core.parallel.devices import home, suited
from magi_core.parallel.fit import place_of
from magi_core.parallel.predict import Way

STARTED: weakref.WeakSet[Workers] = weakref.WeakSet()
"""All that were started here: two of them on one device would each hold a model there."""


class Workers:
    """One for each device."""

    def __init__(self, build: FromFiles, devices: Sequence[str], way: Way, wanted: Place | Literal["auto"]) -> None:
        """wanted: where their weights are to lie."""
        self.build, self.devices, self.way, self.wanted = build, tuple(devices), way, wanted
        self._engine: Engine | None = None

    @property
    def alive(self) -> bool:
        return self._engine is not None and self._engine.alive

    @property
    def here(self) -> bool:
        """Whether they are processes of this computer, and take its devices' memory."""
        return home(self.devices) is not None

    def placed(self, use: Use, room: int) -> Use:
        """With the weights where they lie in the workers; raises MagiError where their devices, of ``room`` bytes each, have too little."""
        return replace(use, weights=place_of(use, len(self.devices), self.way, self.wanted, room))

    def take(self, session: Session) -> None:
        """Run the session from its next step on. Workers that ended are started again, and others on the same devices end for them; how they
        share the model is what suits the first session. Raises MagiError where they cannot start or cannot share the model in this way.
        """
        if self._engine is None or not self._engine.alive:
            build, strategy = suited(session, self.build, self.devices, self.way, self.wanted)
            for other in list(STARTED):
                if set(other.devices) & set(self.devices):
                    other.close()
            STARTED.add(self)
            self._engine = start(build, self.devices, strategy)
        if session.runner != self._engine.runner:
            session.run_by(self._engine.runner)

    def give_back(self, session: Session) -> None:
        """From now on the session can do without workers."""
        if session.runner != Runner():
            session.run_by(Runner())

    def close(self) -> None:
        """End them; the next session has new ones started."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
