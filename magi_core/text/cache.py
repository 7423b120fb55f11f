"""Captions on disk, so that a prompt is encoded once and the text encoder need not be loaded to make the video again.

One safetensors file per caption, named by the hashes of the encoder and of the text. A damaged file counts as missing. When the
folder exceeds its limit, the entries that were used longest ago go first. Failing to write is logged, never fatal.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from magi_core.errors import MagiError
from magi_core.files import atomic_write
from magi_core.text.caption import Caption

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddingCache:
    """A folder of captions; ``limit_bytes`` bounds the total size of the entries (the newest one is always kept)."""

    folder: Path
    limit_bytes: int = 2 * 1024**3

    def path(self, model: str, text: str) -> Path:
        """The entry's file for a model hash and a cleaned text."""
        return Path(self.folder) / f"{_hash(model)[:16]}-{_hash(text)[:32]}.safetensors"

    def get(self, model: str, text: str, channels: int) -> Caption | None:
        """The stored caption (float32, ``channels`` wide), or None when there is none or the file is damaged."""
        path = self.path(model, text)
        try:
            with safe_open(path, framework="pt") as file:
                caption = Caption(file.get_tensor("embedding").float(), file.get_tensor("mask"))
                recorded = (file.metadata() or {}).get("sha256")
            if recorded != _digest(caption) or caption.channels != channels:
                raise MagiError("its content is not what was written")
            os.utime(path)  # used now: the last to be removed
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, MagiError) as error:
            logger.warning("ignoring the stored caption %s: %s", path, error)
            return None
        return caption

    def put(self, model: str, text: str, caption: Caption) -> None:
        """Store a caption, then remove the oldest entries beyond the limit."""
        path = self.path(model, text)
        stored = {"embedding": caption.embedding.float().cpu().contiguous(), "mask": caption.mask.cpu().contiguous()}
        try:
            with atomic_write(path) as temporary:
                save_file(stored, temporary, metadata={"sha256": _digest(caption)})
            self._shrink(keep=path)
        except (OSError, SafetensorError, MagiError) as error:
            logger.warning("cannot store the caption in %s: %s", self.folder, error)

    def _shrink(self, keep: Path) -> None:
        entries = []
        for path in Path(self.folder).glob("????????????????-????????????????????????????????.safetensors"):
            state = path.stat()
            entries.append((state.st_mtime_ns, path, state.st_size))
        total = sum(size for _, _, size in entries)
        for _, path, size in sorted(entries):
            if total <= self.limit_bytes:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def _digest(caption: Caption) -> str:
    digest = hashlib.sha256(caption.embedding.float().cpu().contiguous().numpy().tobytes())
    digest.update(caption.mask.bool().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
