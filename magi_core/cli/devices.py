"""`--devices`: one generation by several devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from magi_core.checkpoint.load import load_dit
from magi_core.making import Decode, Making
from magi_core.parallel import Decoder, FromFiles, start
from magi_core.parallel.devices import decode_too, suited
from magi_core.pipeline import Magi


def keep_home(magi: Magi) -> None:
    """Leave the transformer in its file: workers compute with weights of their own."""
    magi.dit = load_dit(magi.files, dtype=magi.dtype)


@contextmanager
def shared(making: Making, magi: Magi, devices: list[str]) -> Iterator[Decode]:
    """Within, the devices run the model, in the way that is predicted to be fastest; what decodes its chunks, the devices too if they can."""
    build = FromFiles(magi.files, magi.dtype, magi.attention, fp8=magi.fp8, loras=magi.loras)
    build, strategy = suited(making.session, build, devices, wanted=magi.weights)
    dtype = magi.vae_dtype(gpu="cuda" in devices[0])
    decoder = Decoder(magi.vae_folder, dtype, magi.tiling, magi.config.scale_factor)
    too = decode_too(making.session, build, devices, strategy, decoder, magi.vae_config)
    with start(build, devices, strategy, decoder if too else None) as engine:
        making.session.run_by(engine.runner)
        yield engine.decode if too else magi.decoder()
