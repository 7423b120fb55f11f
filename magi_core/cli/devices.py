"""`--devices`: every generation of a command by several devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from magi_core.checkpoint.load import load_dit
from magi_core.making import Decode, Making
from magi_core.parallel import Decoder, Engine, FromFiles, Strategy, start
from magi_core.parallel.devices import decode_too, suited
from magi_core.pipeline import Magi


def keep_home(magi: Magi) -> None:
    """Leave the transformer in its file: workers compute with weights of their own."""
    magi.dit = load_dit(magi.files, dtype=magi.dtype)


class Workers:
    """The devices of ``--devices`` at one video after the other: they start when first needed and stay while the same way of working suits."""

    def __init__(self, magi: Magi, devices: list[str]) -> None:
        self._magi, self._devices = magi, devices
        self._engine: Engine | None = None
        self._built: tuple[FromFiles, Strategy, bool] | None = None

    @contextmanager
    def at(self, making: Making) -> Iterator[Decode]:
        """Within, they run the model, in the way that is predicted to be fastest; what decodes its chunks, they too if they can."""
        magi, devices, session = self._magi, self._devices, making.session
        build = FromFiles(magi.files, magi.dtype, magi.attention, fp8=magi.fp8, loras=magi.loras)
        build, strategy = suited(session, build, devices, wanted=magi.weights)
        dtype = magi.vae_dtype(gpu="cuda" in devices[0])
        decoder = Decoder(magi.vae_folder, dtype, magi.tiling, magi.config.scale_factor)
        too = decode_too(session, build, devices, strategy, decoder, magi.vae_config)
        if self._engine is None or not self._engine.alive or self._built != (build, strategy, too):
            self.close()
            self._engine = start(build, devices, strategy, decoder if too else None)
            self._built = (build, strategy, too)
        session.run_by(self._engine.runner)
        yield self._engine.decode if too else magi.decoder()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
