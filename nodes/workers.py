"""Processes that run a model for ComfyUI's own, which only drives: they start when first needed and stay for the next video."""

from __future__ import annotations

from collections.abc import Sequence

from magi_core.denoise.guidance import Runner
from magi_core.denoise.session import Session
from magi_core.parallel import Engine, FromFiles, start
from magi_core.parallel.devices import suited
from magi_core.parallel.predict import Way


class Workers:
    """One for each device."""

    def __init__(self, build: FromFiles, devices: Sequence[str], way: Way) -> None:
        self.build, self.devices, self.way = build, tuple(devices), way
        self._engine: Engine | None = None

    @property
    def alive(self) -> bool:
        return self._engine is not None and self._engine.alive

    def take(self, session: Session) -> None:
        """Run the session from its next step on. Workers that ended are started again; how they share the model is what suits the first
        session. Raises MagiError where they cannot start or cannot share the model in this way.
        """
        if self._engine is None or not self._engine.alive:
            strategy = suited(session, self.build, self.devices, self.way)
            self.close()
            self._engine = start(self.build, self.devices, strategy)
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
