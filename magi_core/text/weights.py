"""T5 encoder weights: finding, checking and reading them, as released or as artists keep them.

Two forms are read: a folder (``config.json`` and safetensors, one file or shards with an index, like ``t5-v1_1-xxl``), or one
file (``t5xxl_fp16.safetensors``, ``t5xxl_fp8_e4m3fn*.safetensors``, ``t5-v1_1-xxl-encoder-Q8_0.gguf``). Sizes come from the tensors'
shapes, so the single file needs no configuration. Nothing is ever unpickled: a ``pytorch_model.bin`` is refused with advice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from magi_core.errors import MagiError, missing_extra, shorten
from magi_core.files import read_json_object
from magi_core.text import gguf
from magi_core.text.tokenizer import BYTE_VOCABULARY, find_vocabulary

if TYPE_CHECKING:
    from transformers import T5EncoderModel

RELEASE_FOLDER = "t5-v1_1-xxl"
INDEX = "model.safetensors.index.json"
BLOCK = "encoder.block.{}.layer."
RELATIVE_BIAS = "0.SelfAttention.relative_attention_bias.weight"

MAX_SETTING = 1_000_000

_SAMPLES = 16
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class T5Sizes:
    """A gated-gelu T5 encoder's sizes (spec section 10; the released one is 4096 wide, 24 layers, 64 heads of 64)."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    @property
    def parameters(self) -> int:
        """How many weights the encoder has, its table of tokens counted once."""
        inner = self.num_heads * self.d_kv
        layer = self.d_model * (4 * inner + 3 * self.d_ff + 2)
        table = self.relative_attention_num_buckets * self.num_heads
        return self.d_model * (self.vocab_size + 1) + self.num_layers * layer + table


@dataclass(frozen=True)
class T5Files:
    """Where a text encoder's parts are; ``vocabulary`` is None for a byte tokenizer."""

    weights: tuple[Path, ...]
    vocabulary: Path | None
    sizes: T5Sizes


def find_t5(place: Path, vocabulary: Path | None = None) -> T5Files:
    """Look at a T5 folder, safetensors or GGUF file without reading its weights.

    ``place`` may also be the folder that holds ``t5-v1_1-xxl`` (the release's ``t5_pretrained``). ``vocabulary`` is the tokenizer's
    folder; without it, the model's own folder is searched. Raises MagiError when something is missing, damaged or no T5 encoder.
    """
    place = Path(place)
    if not place.exists():
        raise MagiError(
            f"the text encoder {place} does not exist; give the folder t5-v1_1-xxl, a t5xxl_*.safetensors file or a GGUF of it"
        )
    folder = place if place.is_dir() else place.parent
    if place.is_dir() and not _weight_files(place) and (place / RELEASE_FOLDER).is_dir():
        place = folder = place / RELEASE_FOLDER
    weights = _weight_files(place) if place.is_dir() else (place,)
    if not weights or any(path.suffix not in (".safetensors", gguf.SUFFIX) for path in weights):
        raise MagiError(_no_weights(place, weights))
    settings = _settings(folder) if place.is_dir() else {}
    sizes = _sizes(_shapes(weights), settings, place)
    if settings.get("tokenizer_class") == "ByT5Tokenizer" or (not settings and sizes.vocab_size == BYTE_VOCABULARY):
        return T5Files(weights, None, sizes)
    found = find_vocabulary(Path(vocabulary) if vocabulary else folder)
    if found is None:
        raise MagiError(
            f"no T5 vocabulary (spiece.model or tokenizer.json) in {vocabulary or folder}. Put spiece.model of t5-v1_1-xxl "
            f"into a folder {RELEASE_FOLDER} beside the weights, or give the tokenizer's folder"
        )
    return T5Files(weights, found, sizes)


def fingerprint(files: T5Files) -> str:
    """A cheap hash that tells encoders apart: names, sizes, headers and samples of the weights; the vocabulary's files."""
    digest = hashlib.sha256(repr(files.sizes).encode())
    vocabulary = sorted(files.vocabulary.glob("*")) if files.vocabulary else []
    for path in (*files.weights, *(p for p in vocabulary if p.suffix in (".json", ".model"))):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                header = int.from_bytes(file.read(8), "little")
                digest.update(file.read(min(header, size)))
            for i in range(_SAMPLES):
                file.seek(size * i // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def build_t5(sizes: T5Sizes) -> T5EncoderModel:
    """An encoder of these sizes with Transformers' random initialisation; raises MagiError when the package is missing."""
    try:
        from transformers import T5Config, T5EncoderModel
    except ImportError as error:
        raise missing_extra("transformers", "text", "encoding prompts") from error
    return T5EncoderModel(T5Config(**t5_document(sizes)))


def t5_document(sizes: T5Sizes) -> dict[str, Any]:
    """The sizes as Transformers' configuration, without dropout."""
    return {**vars(sizes), "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "use_cache": False}


def read_t5(files: T5Files, dtype: torch.dtype, device: torch.device) -> T5EncoderModel:
    """The encoder with its weights in ``dtype`` on ``device``, for inference; fp16, bf16, (scaled) fp8 and GGUF files are converted.

    Tensors are read and converted one at a time. Raises MagiError when tensors are missing or have wrong shapes.
    """
    with torch.device("meta"):
        network = build_t5(files.sizes)
    expected = network.state_dict()
    tensors: dict[str, Tensor] = {}
    for name, tensor in _tensors(files.weights):
        if name in expected:
            if tensor.shape != expected[name].shape:
                raise MagiError(
                    f"{files.weights[0]}: {name} has shape {list(tensor.shape)}, expected {list(expected[name].shape)}"
                )
            if not tensor.is_floating_point() or not bool(tensor.float().isfinite().all()):
                raise MagiError(
                    f"{files.weights[0]}: {name} holds values that are no finite numbers; fetch the file again"
                )
            tensors[name] = tensor.to(device=device, dtype=dtype)
    for name, other in (
        ("shared.weight", "encoder.embed_tokens.weight"),
        ("encoder.embed_tokens.weight", "shared.weight"),
    ):
        if name in expected and other in tensors:
            tensors[name] = tensors[other]
    missing = sorted(expected.keys() - tensors.keys())
    if missing:
        raise MagiError(f"{files.weights[0]} lacks {len(missing)} tensors, among them {', '.join(missing[:3])}")
    network.load_state_dict(tensors, assign=True)
    return network.train(False).requires_grad_(False)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The index's shards, or model.safetensors, or the only safetensors or GGUF file; else pickled files, so that they can be named."""
    if (folder / INDEX).is_file():
        shards = read_json_object(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or any(Path(str(name)).name != name for name in shards.values()):
            raise MagiError(f"{folder / INDEX} has no usable weight_map; fetch the file again")
        paths = tuple(folder / name for name in sorted(set(shards.values())))
        for path in paths:
            if not path.is_file():
                raise MagiError(f"{path} is missing, but {INDEX} names it; fetch all shards")
        return paths
    if (folder / "model.safetensors").is_file():
        return (folder / "model.safetensors",)
    for suffix in (".safetensors", gguf.SUFFIX):
        single = tuple(sorted(folder.glob(f"*{suffix}")))
        if len(single) > 1:
            raise MagiError(
                f"{folder} holds {len(single)} {suffix} files and no {INDEX}; choose one: {', '.join(p.name for p in single)}"
            )
        if single:
            return single
    return tuple(sorted(folder.glob("pytorch_model*.bin")))


def _no_weights(place: Path, weights: Iterable[Path]) -> str:
    pickled = [path.name for path in weights]
    if not pickled:
        return f"{place} holds no T5 weights: it needs model.safetensors, shards with {INDEX}, a t5xxl_*.safetensors or a GGUF file"
    return (
        f"{place} has only {pickled[0]}, a format that can run code when it is read, so it is never opened. Put the same encoder as "
        f"safetensors beside it (for example t5xxl_fp16.safetensors)"
    )


def _settings(folder: Path) -> Mapping[str, Any]:
    return read_json_object(folder / "config.json") if (folder / "config.json").is_file() else {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: a scale that does not fit its weight
        raise MagiError(f"cannot read the text encoder's weights {path}: {error}. Fetch the file again") from error


def _shapes(paths: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        if path.suffix == gguf.SUFFIX:
            shapes |= {name: tensor.shape for name, tensor in gguf.open_gguf(path).items()}
            continue
        with _opened(path) as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    return shapes


def _tensors(paths: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by name; an fp8 weight is multiplied by the scale stored beside it, where there is one."""
    for path in paths:
        if path.suffix == gguf.SUFFIX:
            yield from ((name, tensor.values()) for name, tensor in gguf.open_gguf(path).items())
            continue
        with _opened(path) as file:
            names = set(file.keys())
            for name in sorted(names):
                tensor = file.get_tensor(name)
                stem = name.removesuffix("weight")
                for scale in (f"{stem}scale_weight", f"{stem}weight_scale"):
                    if scale in names and name.endswith(".weight"):
                        tensor = tensor.to(torch.float32) * file.get_tensor(scale).to(torch.float32)
                yield name, tensor


def _sizes(shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any], place: Path) -> T5Sizes:
    first = BLOCK.format(0)
    try:
        embedding = shapes.get("shared.weight") or shapes["encoder.embed_tokens.weight"]
        bias, query = shapes[first + RELATIVE_BIAS], shapes[first + "0.SelfAttention.q.weight"]
        gate = shapes[first + "1.DenseReluDense.wi_0.weight"]
    except KeyError as error:
        raise MagiError(
            f"{place} is not a T5 v1.1 encoder: it has no tensor {error.args[0]}. MAGI needs t5-v1_1-xxl (t5xxl_*.safetensors)"
        ) from error
    if BLOCK.format(1) + RELATIVE_BIAS in shapes:
        raise MagiError(
            f"{place} is a umT5 encoder, which other models use. MAGI needs t5-v1_1-xxl (t5xxl_*.safetensors)"
        )
    if (len(embedding), len(bias), len(query), len(gate)) != (2, 2, 2, 2) or 0 in (*embedding, *bias, *query, *gate):
        raise MagiError(f"{place} is damaged: its tensors have shapes that no T5 encoder has. Fetch the file again")
    layers = _layers(shapes)
    if layers is None or settings.get("num_layers", layers) != layers:
        raise MagiError(f"{place} lacks layers of the encoder, or says a wrong number of them. Fetch the file again")
    return T5Sizes(
        vocab_size=embedding[0],
        d_model=embedding[1],
        d_kv=query[0] // bias[1],
        d_ff=gate[0],
        num_layers=layers,
        num_heads=bias[1],
        relative_attention_num_buckets=bias[0],
        relative_attention_max_distance=int(_number(settings, "relative_attention_max_distance", 128)),
        layer_norm_epsilon=_number(settings, "layer_norm_epsilon", 1e-6),
    )


def _layers(shapes: Iterable[str]) -> int | None:
    """How many layers there are tensors of, whichever; None where one in between has none."""
    numbers = {name.split(".")[2] for name in shapes if name.startswith("encoder.block.")}
    return len(numbers) if numbers == {str(i) for i in range(len(numbers))} else None


def _number(settings: Mapping[str, Any], name: str, default: float) -> float:
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SETTING:
        raise MagiError(
            f"the text encoder's {name} is {shorten(value)}; it must be a number above 0, usually {default:g}"
        )
    return value
