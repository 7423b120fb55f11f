"""The whole way: a storyboard goes in, chunks of frames come out as they are finished.

    import magi_core

    magi = magi_core.load("nano")
    for chunk in magi.generate("1s: a red circle moves right\\n1s: it turns blue", seed=1):
        show(chunk.frames)  # uint8 [T, H, W, 3]

``generate`` and ``extend`` give a ``Generation`` (see ``generation.py``), which is iterated, stopped, saved and extended.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from magi_core.checkpoint.find import find_checkpoint
from magi_core.config import MAX_KV_CHUNKS, MAX_SIDE, Sampling
from magi_core.denoise.schedule import Schedule
from magi_core.denoise.storage import read_size
from magi_core.errors import MagiError
from magi_core.generation import Generation
from magi_core.images import Fit, Frames, check_frames, read_keyframe
from magi_core.keeping import Run
from magi_core.lora import Lora, Used, used
from magi_core.making import FRAMES_PER_LATENT, Decode, Making
from magi_core.memory.streaming import Place
from magi_core.model import MagiDiT
from magi_core.parts import Parts
from magi_core.plan import Plan, plan
from magi_core.storyboard import Storyboard
from magi_core.vae.chunks import decode_frames
from magi_core.wishes import Wishes, changed, check_kept

log = logging.getLogger(__name__)

CONTEXT_FRAMES = 96
"""How much of a video that is continued the released settings look at: 4 chunks."""


def context_frames(sampling: Sampling) -> int:
    """How many frames at the end of a video are worth reading when it is continued so: all that its continuation looks at."""
    far = MAX_KV_CHUNKS
    chunks = far - Schedule.of(sampling).first_read(far, far * (sampling.num_steps // sampling.window_size))
    return max(CONTEXT_FRAMES, chunks * sampling.chunk_width * FRAMES_PER_LATENT)


class Magi(Parts):
    """A model that makes videos."""

    def dit_for(self, earlier: Path | str) -> MagiDiT:
        """The transformer to go on with a session file, or the run in a folder: read, where it was not yet, so that their video fits."""
        if "dit" not in vars(self):
            path = Path(earlier)
            height, width, sampling = Run.open(path).size() if path.is_dir() else read_size(path)
            patch = self.vae_config.patch_size
            self.dit = self.read_dit(height * patch, width * patch, sampling)
        return self.dit

    @property
    def _quantises(self) -> bool:
        """Whether reading the weights changes them: those in 8 bits stay as they are."""
        return self.fp8 and not self.config.dit.fp8_quant

    @cached_property
    def used_loras(self) -> tuple[Used, ...]:
        """As sessions remember them."""
        return used(self.loras)

    def generate(
        self,
        storyboard: Storyboard | str,
        *,
        image: Frames | None = None,
        video: Frames | None = None,
        wishes: Wishes | None = None,
        folder: Path | None = None,
        **changes: object,
    ) -> Generation:
        """A video that follows ``storyboard`` (a value, its text or JSON form), as an iterable of chunks.

        image: uint8 [H, W, 3], becomes the first frame. video: uint8 [T, H, W, 3] at the model's frame rate, is continued, all of it;
        its frames are not part of the result. folder: where the storyboard's keyframes lie. wishes: size, seed, sampling and so on; ``changes``
        are fields of ``Wishes`` given by name (``seed=3``). Raises MagiError for what does not fit together, before denoising.
        """
        storyboard = _storyboard(storyboard)
        wishes = changed(wishes or Wishes(), changes)
        if image is not None and video is not None:
            raise MagiError("give either an image to start from or a video to continue, not both")
        if image is not None and storyboard.shots[0].keyframe is not None:
            raise MagiError("the first shot has a keyframe already; leave the image or the keyframe out")
        sampling = self._sampling(wishes)
        height, width = self._size(wishes)
        for frames in (video, image if image is None else np.asarray(image)[None]):
            if frames is not None:
                check_frames(np.asarray(frames))
        self._plan(storyboard, wishes, sampling)  # what is wrong with it is said before anything big is read
        prefix = None if video is None else self._prefix(video, height, width, wishes.fit)
        layout = self._plan(
            storyboard, wishes, sampling, 0 if prefix is None else prefix.shape[2] * self.vae_config.patch_length
        )
        if "dit" not in vars(self):
            self.dit = self.read_dit(height, width, sampling)
        making = Making.start(
            self.dit,
            sampling,
            height=height // self.vae_config.patch_size,
            width=width // self.vae_config.patch_size,
            seed=self.config.seed if wishes.seed is None else wishes.seed,
            negative=wishes.negative,
            special=self.special_tokens,
            prefix=prefix,
            loras=self.used_loras,
            fp8=self._quantises,
        )
        images = self._keyframes(layout, height, width, wishes.fit, folder)
        if image is not None:
            images[0] = self.encode(image[None], height, width, wishes.fit)
        self._add(making, layout, images, wishes)
        return Generation(making, self.decoder(), self.config.fps)

    def extend(
        self,
        earlier: Generation | Path | str,
        storyboard: Storyboard | str | None = None,
        *,
        wishes: Wishes | None = None,
        folder: Path | None = None,
        **changes: object,
    ) -> Generation:
        """Go on with an earlier generation, or a saved one: first with what it still has planned, then with ``storyboard``.

        earlier: also the path of a session file, or of a run's folder (``keeping``).
        Exact: what was in flight or remembered is used as it is. Size, seed, sampling and negative stay as they were; ``wishes`` are
        for the special tokens, fit and more_to_come. Raises MagiError when they ask for something else, when a file is damaged, or
        belongs to another model or other LoRAs.
        """
        wishes = changed(wishes or Wishes(), changes)
        if isinstance(earlier, Generation):
            making = earlier.making
        elif Path(earlier).is_dir():
            making = Run.open(Path(earlier)).load(self.dit_for(earlier), loras=self.used_loras)
        else:
            making = Making.load(Path(earlier), self.dit_for(earlier))
        making.check_loras(self.used_loras)
        making.check_fp8(self._quantises)
        session = making.session
        patch = self.vae_config.patch_size
        check_kept(wishes, session, patch, self.special_tokens)
        if storyboard is not None:
            layout = self._plan(_storyboard(storyboard), wishes, session.sampling, making.held_frames)
            images = self._keyframes(layout, session.height * patch, session.width * patch, wishes.fit, folder)
            self._add(making, layout, images, wishes)
        return Generation(making, self.decoder(), self.config.fps)

    def plan(self, storyboard: Storyboard | str, wishes: Wishes | None = None) -> Plan:
        """The chunks of a storyboard; loads nothing."""
        wishes = wishes or Wishes()
        return self._plan(_storyboard(storyboard), wishes, wishes.sampling or self.config.sampling)

    def decoder(self) -> Decode:
        """Turns scaled latents into frames; reads the VAE's weights now."""
        vae, tiling = self.vae, self.tiling
        return lambda latents: decode_frames(vae, latents, self.config.scale_factor, tiling)

    def _plan(self, storyboard: Storyboard, wishes: Wishes, sampling: Sampling, prefix_frames: int = 0) -> Plan:
        chunk_frames = sampling.chunk_width * self.config.temporal_downsample_factor
        return plan(
            storyboard,
            self.config.fps,
            chunk_frames=chunk_frames,
            prefix_frames=prefix_frames,
            more_to_come=wishes.more_to_come,
        )

    def _add(self, making: Making, layout: Plan, images: Mapping[int, Tensor], wishes: Wishes) -> None:
        captions = self.encode_prompts(layout.prompts)
        told = [captions[prompt] for prompt in layout.prompts]
        making.add(layout, told, images, special=self.special_tokens, tokens=wishes.tokens)

    def _keyframes(self, layout: Plan, height: int, width: int, fit: Fit, folder: Path | None) -> dict[int, Tensor]:
        """Latent images [1, C, 1, h, w] by the index of the planned chunk."""
        images = {}
        for chunk in layout.chunks:
            if chunk.keyframe is not None:
                image = read_keyframe(chunk.keyframe, folder or Path())
                images[chunk.index] = self.encode(image[None], height, width, fit)
        return images

    def _prefix(self, video: Frames, height: int, width: int, fit: Fit) -> Tensor:
        """Latents [1, C, P, h, w] of a video's last whole groups of 4 frames."""
        group = self.vae_config.patch_length
        usable = len(video) // group * group
        if not usable:
            raise MagiError(f"the video to continue has {len(video)} frames; at least {group} are needed")
        return self.encode(video[-usable:], height, width, fit)

    def _sampling(self, wishes: Wishes) -> Sampling:
        sampling = wishes.sampling or self.config.sampling
        if sampling.cfg_number != self.config.sampling.cfg_number:
            raise MagiError(
                f"cfg_number is {sampling.cfg_number}; this model needs {self.config.sampling.cfg_number}: change its own sampling settings"
            )
        return sampling

    def _size(self, wishes: Wishes) -> tuple[int, int]:
        multiple = self.vae_config.patch_size * self.config.dit.patch_size
        size = wishes.height or self.config.height, wishes.width or self.config.width  # no wish is 0
        for name, value in zip(("height", "width"), size, strict=True):
            if value % multiple or not 2 * multiple <= value <= MAX_SIDE:
                near = max(2, round(value / multiple)) * multiple
                raise MagiError(
                    f"{name} is {value}; it must be a multiple of {multiple}, from {2 * multiple} to {MAX_SIDE}: try {near}"
                )
        return size


def load(
    model: str | Path = "nano",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    weights: Place | Literal["auto"] = "auto",
    fp8: bool = False,
    attention: str = "auto",
    text_cache: Path | None = None,
    loras: Sequence[Lora | str] = (),
) -> Magi:
    """Find a model: "nano", a folder of the public release, a configuration JSON, or one safetensors file.

    device: default the first GPU, else the CPU. dtype: what the transformer computes in (default: the configuration's).
    weights: of the transformer's layers, "resident" on the device, "streamed" from host memory, or "auto", the first that fits.
    fp8: quantise the big matrices to 8 bits when they are read (lossy, half the memory of bfloat16). attention: a name of
    ``kernels.backends``, or "auto". text_cache: folder for encoded prompts. loras: adapters that change the model, also written "file.safetensors:0.8" (see
    ``magi_core.lora``). Nothing big is read yet. Raises MagiError when there is no such model.
    """
    files = find_checkpoint(model)
    for note in files.notes:
        log.warning("%s: %s", files.dit, note)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MagiError(
            f"device is '{device}', which cannot be used here ({error}); use cpu, cuda or cuda:0"
        ) from error
    return Magi(
        files,
        device=device,
        dtype=dtype,
        weights=weights,
        fp8=fp8,
        attention=attention,
        text_cache=text_cache,
        loras=[Lora.parse(lora) if isinstance(lora, str) else lora for lora in loras],
    )


def _storyboard(storyboard: Storyboard | str) -> Storyboard:
    return storyboard if isinstance(storyboard, Storyboard) else Storyboard.from_string(storyboard)
