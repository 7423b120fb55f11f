"""Keys and values of finished chunks (spec 6).

Notable:
- Only the chunks that later chunks read are held, so memory does not grow with the length of the video: a layer's rows lie in one buffer
  of as many slots as chunks were ever held at once, and a new chunk takes the slot of a forgotten one.
- A pass reads past and current chunks side by side in one room that all layers share. (A room in every layer would spare the copy of
  the past, and cost the keys and values of a whole window in all layers: several times what is held.)
- Where the weights wait in host memory, so do the rows: while a layer computes, the next one's arrive on a stream of their own.
- Keys are stored rotated to their place in the video, so neither order nor slot matters, and no table has to reach as far as the video.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from magi_core.errors import MagiError
from magi_core.model.arrivals import Arrivals
from magi_core.model.memo import Memo


class KVCache:
    """Per layer, the chunks held: [tokens, groups, 2 d], key (normed, rotated) beside raw value. For inference only."""

    def __init__(self) -> None:
        self.memo = Memo()
        """What else the passes over this video share."""
        self._layers: dict[int, _Layer] = {}
        self._room = torch.empty(0)
        self._in_room: tuple[int, int, int] | None = None
        """The layer and the chunks, [first, end), whose rows the room holds."""
        self._sent: _Sent | None = None

    @property
    def on_host(self) -> bool:
        """Whether the rows are kept in host memory."""
        return self._sent is not None

    def keep_on_host(self) -> None:
        """From now on keep the rows in host memory, pinned where there is a CUDA device; what is held moves there."""
        if self._sent is None:
            self._sent = _Sent()
            for layer in self._layers.values():
                layer.to_host()

    @property
    def chunks(self) -> tuple[int, ...]:
        """The numbers of the chunks held in every layer, oldest first."""
        layers = [set(layer.slots) for layer in self._layers.values()]
        return tuple(sorted(set.intersection(*layers))) if layers else ()

    @property
    def nbytes(self) -> int:
        """Bytes taken, wherever they are, the shared room included."""
        return self._room.nbytes + sum(layer.buffer.nbytes for layer in self._layers.values())

    def read(self, layer: int, first: int, end: int) -> list[Tensor]:
        """The rows of chunks [first, end), one tensor a chunk, on the device they came from; raises MagiError where one is not held."""
        rows = self._rows(layer, first, end)
        return rows if self._sent is None else [self._layers[layer].on_device(row) for row in rows]

    def write(self, layer: int, chunk: int, rows: Tensor) -> None:
        """Store a chunk's rows [tokens, groups, 2 d], in place of what was held of it."""
        self._layer(layer).make_place(chunk, rows.shape, rows).copy_(rows.detach())
        self._in_room = None
        if self._sent is not None:
            self._sent.forget()

    def join(
        self, layer: int, k: Tensor, v: Tensor, *, first: int, chunk: int, chunks: int, store: int
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the held chunks [first, chunk) and, behind them, of the ``chunks`` current ones, which begin at ``chunk``.

        k, v [tokens, groups, d] are the current ones. What comes back, of the same form, is valid until the next call. The first
        ``store`` of the current chunks are stored, after reading. Raises MagiError as ``read`` does, and where gradients are asked for.
        """
        held = self._rows(layer, first, chunk)
        if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
            raise MagiError("a pass with a KV cache carries no gradient; call the model under torch.no_grad()")
        keys, values = self._behind((layer, first, chunk), held, k, v) if held else (k, v)
        if self._sent is not None and held and layer + 1 in self._layers:
            self._sent.begin(layer + 1, self._rows(layer + 1, first, chunk), k)
        d, written = k.shape[-1], self._layer(layer)
        for i, (key, value) in enumerate(zip(k.chunk(chunks)[:store], v.chunk(chunks), strict=False)):
            place = written.make_place(chunk + i, (*key.shape[:2], 2 * d), key)
            if self._sent is None:
                place[..., :d], place[..., d:] = key, value
            else:
                place.copy_(torch.cat([key, value], dim=-1), non_blocking=True)
            self._in_room = None
        return keys, values

    def keep_from(self, chunk: int) -> None:
        """Forget all chunks before ``chunk``; their places are free for others."""
        for layer in self._layers.values():
            layer.slots = {number: slot for number, slot in layer.slots.items() if number >= chunk}
        self._in_room = None

    def state(self) -> dict[str, Tensor]:
        """Everything held, as plain tensors: ``chunks`` [n] int64, ``layer_{i}`` [n, tokens, groups, 2 d]."""
        chunks = self.chunks
        for layer in self._layers.values():
            layer.settle()
        state = {"chunks": torch.tensor(chunks, dtype=torch.int64)}
        if chunks:
            state |= {f"layer_{i}": torch.stack([held.place(c) for c in chunks]) for i, held in self._layers.items()}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> KVCache:
        """The cache that ``state`` was taken of."""
        cache = cls()
        chunks = state["chunks"].tolist()
        for name in (name for name in state if name != "chunks"):
            for chunk, rows in zip(chunks, state[name], strict=True):
                cache.write(int(name.removeprefix("layer_")), chunk, rows)
        return cache

    def _layer(self, layer: int) -> _Layer:
        return self._layers.setdefault(layer, _Layer(host=self.on_host))

    def _rows(self, layer: int, first: int, end: int) -> list[Tensor]:
        """As ``read``, where they are kept."""
        held = self._layers.get(layer, _Layer())
        missing = [chunk for chunk in range(first, end) if chunk not in held.slots]
        if missing:
            raise MagiError(
                f"the KV cache does not hold chunk {missing[0]} (it holds {list(self.chunks)}); "
                "a chunk must be written before later chunks read it, and kept as long as they do"
            )
        return [held.place(chunk) for chunk in range(first, end)]

    def _behind(self, past: tuple[int, int, int], held: list[Tensor], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k and v behind ``held``, the rows of ``past``, in the shared room; what another pass left there is not copied again."""
        before, d = sum(map(len, held)), k.shape[-1]
        wanted = (before + len(k), k.shape[1], 2 * d)
        room = self._room
        if len(room) < wanted[0] or room.shape[1:] != wanted[1:] or room.dtype != k.dtype:
            room, self._in_room = _empty(wanted, k), None
            self._room = room
        if self._in_room != past:
            rows = held if self._sent is None else self._sent.take(past[0], held, k)
            for row, there in zip(rows, room[:before].chunk(len(rows)), strict=True):
                there.copy_(row)
            self._in_room = past
        keys, values = room[: wanted[0], :, :d], room[: wanted[0], :, d:]
        keys[before:], values[before:] = k, v
        return keys, values


class _Sent:
    """The rows of one layer on their way from host memory to the device, in a slot that all layers share."""

    def __init__(self) -> None:
        self._slot = torch.empty(0)
        self._arrivals: Arrivals | None = None
        self._layer: int | None = None
        self._rows: list[Tensor] = []

    def begin(self, layer: int, rows: list[Tensor], like: Tensor) -> None:
        """Send ``rows`` to the device of ``like``, as soon as all work given to it up to now is done with the slot.

        Nothing is done where they are on their way already.
        """
        if self._under_way(layer, rows):
            return
        wanted = (sum(map(len, rows)), *rows[0].shape[1:])
        if self._slot.shape != wanted or self._slot.dtype != like.dtype or self._slot.device != like.device:
            self._slot = _empty(wanted, like)
        if self._arrivals is None:
            self._arrivals = Arrivals(like.device)
        for there, row in zip(self._slot.chunk(len(rows)), rows, strict=True):
            self._arrivals.copy(there, row)
        self._layer, self._rows = layer, rows

    def take(self, layer: int, rows: list[Tensor], like: Tensor) -> list[Tensor]:
        """``rows`` of a layer on the device, valid until more are sent."""
        if not self._under_way(layer, rows):
            self.forget()  # the first layer of a pass: its stream is that of the work now
            self.begin(layer, rows, like)
        if self._arrivals is not None:
            for _ in rows:
                self._arrivals.wait()
        self._layer = None
        return list(self._slot.chunk(len(rows)))

    def _under_way(self, layer: int, rows: list[Tensor]) -> bool:
        same = len(rows) == len(self._rows) and all(
            a.data_ptr() == b.data_ptr() for a, b in zip(rows, self._rows, strict=True)
        )
        return layer == self._layer and same and self._arrivals is not None

    def forget(self) -> None:
        """Nothing is on its way any more."""
        if self._arrivals is not None:
            self._arrivals.finish()
        self._arrivals, self._layer, self._rows = None, None, []


class _Layer:
    """The rows of one layer: a buffer [places, tokens, groups, 2 d], and which chunk has which place."""

    def __init__(self, *, host: bool = False) -> None:
        self.slots: dict[int, int] = {}
        self.host = host
        self.device = torch.device("cpu")
        """Where rows come from."""
        self.buffer = torch.empty(0)

    def place(self, chunk: int) -> Tensor:
        """Where a chunk that is held has its rows."""
        return self.buffer[self.slots[chunk]]

    def make_place(self, chunk: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Where rows of ``shape`` are to go: the chunk's own place, or a free one; the buffer grows by one where none is."""
        self.device = like.device
        taken = set(self.slots.values())
        slot = self.slots.get(chunk, next(i for i in range(len(taken) + 1) if i not in taken))
        if len(self.buffer) <= slot:
            grown = _empty((slot + 1, *shape), like, host=self.host)
            if self.slots:
                self.settle()
                grown[: len(self.buffer)] = self.buffer
            self.buffer = grown
        self.slots[chunk] = slot
        return self.buffer[slot]

    def to_host(self) -> None:
        self.host = True
        if self.slots:
            self.device = self.buffer.device
            self.buffer = _empty(self.buffer.shape, self.buffer, host=True).copy_(self.buffer)

    def on_device(self, rows: Tensor) -> Tensor:
        """A copy of rows that are kept in host memory."""
        self.settle()
        return rows.to(self.device, copy=True)

    def settle(self) -> None:
        """Wait for what the device still writes to host memory."""
        if self.host and self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


def _empty(shape: tuple[int, ...], like: Tensor, *, host: bool = False) -> Tensor:
    """A buffer that passes in and outside of inference mode may write to, on the device of ``like`` or in host memory."""
    with torch.inference_mode(False):
        if host:
            return torch.empty(shape, dtype=like.dtype, device="cpu", pin_memory=torch.cuda.is_available())
        return torch.empty(shape, dtype=like.dtype, device=like.device)
