"""From what a person names to the files of a model: a built-in name like ``nano``, a folder, a configuration, or one safetensors file.

The public release keeps its parts apart (``ckpt/magi/<model>/inference_weight[.fp8][.distill]``, ``ckpt/vae``, ``ckpt/t5``);
people download some of them. What is there is found, what is not is named with the place where it can be had, and nothing is
loaded yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from magi_core.checkpoint.infer import infer_config
from magi_core.checkpoint.reader import PICKLE_SUFFIXES, Weights, open_weights, weights_exist
from magi_core.config import DiTConfig, MagiConfig
from magi_core.config_file import parse_config, read_config
from magi_core.errors import MagiError
from magi_core.files import parse_json_object, read_json_object
from magi_core.presets import PRESETS

ASSETS = Path(__file__).resolve().parents[2] / "assets"
BUILT_IN = {name: ASSETS / name for name in ("nano", "nano-distilled", "nano-full")}
"""The models that are part of this project, by name."""
METADATA_CONFIG = "magi_config"
"""Metadata key of a one-file checkpoint that holds the configuration as JSON."""
METADATA_NOTES = "magi_notes"
"""Metadata key of what was guessed when that file was made."""

RELEASE = "of sand-ai/MAGI-1 on Hugging Face"
T5_MARK = "encoder.block.0.layer.0.SelfAttention.q.weight"
WEIGHTS_FOLDER = "inference_weight"
LEVELS = 4
"""How many folders above the weights are searched for VAE, text encoder and special tokens (the release needs 4)."""


@dataclass(frozen=True)
class CheckpointFiles:
    """Where the parts of a model are. A part that was not found is None and described in ``missing``."""

    name: str
    """Size and kind: "nano", "4.5b-distill", "24b", or a description."""
    config: MagiConfig
    dit: Path | None
    """A folder with ``model.safetensors[.index.json]``, or one safetensors file."""
    vae: Path | None
    """A folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``."""
    t5: Path | None
    """A folder with ``config.json``, or one safetensors or GGUF file."""
    special_tokens: Path | None
    """The npz file of special tokens."""
    notes: tuple[str, ...] = ()
    """What was guessed or chosen."""
    missing: tuple[str, ...] = ()
    """Parts that were not found, and where to get them."""


def find_checkpoint(source: str | Path, config: MagiConfig | None = None) -> CheckpointFiles:
    """Find the parts of the model that ``source`` names.

    ``source`` is a name of ``BUILT_IN``, a configuration JSON (its paths count from the file's folder or the working folder), a folder (of
    weights, of one model, or of a whole release with one model in it), an index, or a one-file checkpoint. ``config`` wins over
    one found in files; without any, it is worked out from the tensors' shapes.
    Raises MagiError when nothing fits, when there are several models to choose from, and for damaged files.
    """
    path = BUILT_IN.get(str(source)) or Path(source)
    try:
        # Whole, because the folders' names tell what weights are; links stay, for a cache of downloads links to files without names.
        return _find(str(source), Path(os.path.abspath(path.expanduser())), config)
    except (OSError, RuntimeError) as error:  # names that no file system takes, folders without permission
        reason = getattr(error, "strerror", None) or "no such user or folder"
        raise MagiError(f"cannot look for a model at {str(source)[:200]!r}: {reason}") from error


def _find(source: str, path: Path, config: MagiConfig | None) -> CheckpointFiles:
    if not path.exists():
        raise _nothing_at(source, path)
    if path.suffix == ".json" and not path.name.endswith(".index.json"):
        return _from_config(config or read_config(path), path.parent)
    if path.is_dir() and not weights_exist(path):
        path = _model_folder(path)
        own = config or _own_config(path)
        if own is not None:
            return _from_config(own, path)
        path = _weights_folder(path)
    notes: tuple[str, ...] = ()
    if config is None and path.is_dir():
        config = _own_config(path) or _own_config(path.parent)
    if config is None:
        weights = open_weights(path)
        config = _metadata_config(weights)
        if config is not None:
            notes = tuple(note for note in (weights.metadata.get(METADATA_NOTES),) if note)
        else:
            distill = "distill" in f"{path.parent.name} {path.name}".lower()
            config, notes = infer_config(weights.tensors, path, distill)
    return _with_surroundings(config, path, path.parent, notes, ())


def weights_folder(dit: DiTConfig) -> str:
    """The name of the folder of weights in the public release, by kind of model (spec 2)."""
    return WEIGHTS_FOLDER + (".fp8" if dit.fp8_quant else "") + (".distill" if dit.distill else "")


def model_name(dit: DiTConfig) -> str:
    """The preset that ``dit`` equals, or a description of its size."""
    for name, preset in PRESETS.items():
        if preset.dit == dit:
            return name
    kind = f"{'-distill' if dit.distill else ''}{'-fp8' if dit.fp8_quant else ''}"
    return f"custom{kind} ({dit.num_layers} layers of width {dit.hidden_size})"


def _from_config(config: MagiConfig, folder: Path) -> CheckpointFiles:
    """The weights that a configuration names: ``<load>/inference_weight`` + ``.fp8`` + ``.distill``."""
    wanted = weights_folder(config.dit)
    places = list(_places(config.load, folder)) if config.load else [folder]
    for place in places:
        for dit in (place / wanted, place):
            if dit.is_file() or weights_exist(dit):
                return _with_surroundings(config, dit, folder, (), ())
    others = [other.name for place in places for other in _variants(place)]
    if others:
        advice = (
            f"there is {', '.join(others)}: use the configuration of that model, or set fp8_quant and distill to match"
        )
    else:
        advice = f"it is ckpt/magi/<model>/{wanted} {RELEASE}"
    missing = f"DiT weights: no folder {wanted} in {places[0]}; {advice}"
    return _with_surroundings(config, None, folder, (), (missing,))


def _with_surroundings(
    config: MagiConfig, dit: Path | None, folder: Path, notes: tuple[str, ...], missing: tuple[str, ...]
) -> CheckpointFiles:
    """Add VAE, text encoder and special tokens: where the configuration says, else near the weights."""
    roots = [folder.resolve(), *folder.resolve().parents[:LEVELS]]
    if dit is not None:
        roots += [root for root in dit.resolve().parents[:LEVELS] if root not in roots]
    vae_places = [*_places(config.vae_pretrained, folder), *(root / "vae" for root in roots)]
    t5_places = [
        *_places(config.t5_pretrained, folder),
        *(root / name for root in roots for name in ("t5", "t5_pretrained")),
    ]
    vae = next((place for place in vae_places if _is_vae(place)), None)
    t5 = next((found for place in t5_places if (found := _t5_in(place))), None)
    tokens = next((file for root in roots for file in _token_files(root) if file.is_file()), None)
    if vae is None:
        missing += (
            f"VAE: a folder vae with config.json and diffusion_pytorch_model.safetensors; it is ckpt/vae {RELEASE}",
        )
    if t5 is None:
        pickled = next((place for place in t5_places if _holds_pickles(place)), None)
        advice = f"; {pickled} holds only pickles (.bin), which are not read: save it as safetensors" if pickled else ""
        missing += (
            f"text encoder: a folder t5 with config.json and safetensors, or one file of t5-v1_1-xxl; it is ckpt/t5 {RELEASE}{advice}",
        )
    if tokens is None:
        missing += (
            "special tokens: special_tokens.npz; it is example/assets/special_tokens.npz of MAGI-1's source repository",
        )
    return CheckpointFiles(model_name(config.dit), config, dit, vae, t5, tokens, notes, missing)


def _nothing_at(source: str, path: Path) -> MagiError:
    if path in BUILT_IN.values():
        return MagiError(f"the weights of magi-{source} are not at {path}; install the package with its assets folder")
    if source.lower() in PRESETS:
        return MagiError(
            f"'{source}' names a model size, not files; give the folder or file with its weights. Built in are {', '.join(BUILT_IN)}"
        )
    return MagiError(
        f"there is nothing at {source!r}; give {', '.join(BUILT_IN)}, a model folder, a configuration JSON or a safetensors file"
    )


def _model_folder(folder: Path) -> Path:
    """``folder`` itself if it is a model's, else the only model of the release in it."""
    if _variants(folder) or _own_config(folder) is not None:
        return folder
    models = [
        model
        for place in ("ckpt/magi", "magi", ".")
        for model in sorted((folder / place).glob("*"))
        if _variants(model)
    ]
    if len(models) == 1:
        return models[0]
    if models:
        raise MagiError(f"{folder} holds {len(models)} models; choose one: {', '.join(str(model) for model in models)}")
    open_weights(folder)  # says what is not there, and names pickles
    raise AssertionError("unreachable")


def _weights_folder(model: Path) -> Path:
    variants = _variants(model)
    if len(variants) > 1:
        raise MagiError(
            f"{model} holds several kinds of weights; choose one: {', '.join(str(path) for path in variants)}"
        )
    return variants[0]


def _variants(model: Path) -> list[Path]:
    return [path for path in sorted(model.glob(f"{WEIGHTS_FOLDER}*")) if weights_exist(path)]


def _own_config(folder: Path) -> MagiConfig | None:
    """The configuration in ``folder``'s config.json, if that is one of ours (VAE and T5 folders have others)."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    document = read_json_object(file)
    return parse_config(document) if "model_config" in document else None


def _metadata_config(weights: Weights) -> MagiConfig | None:
    text = weights.metadata.get(METADATA_CONFIG)
    return None if text is None else parse_config(parse_json_object(text.encode(), weights.path))


def _places(text: str, folder: Path) -> Iterator[Path]:
    """A path of a configuration, counted from the configuration's folder and from the working folder."""
    if text and "\0" not in text:
        yield folder / text
        yield Path(text)


def _is_vae(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "diffusion_pytorch_model.safetensors").is_file()


def _t5_in(place: Path) -> Path | None:
    """The T5 folder (config.json and safetensors) in ``place``, in a folder of it, or a single safetensors or GGUF file."""
    if place.is_file():
        return place if _is_t5_file(place) else None
    for folder in (place, place / "t5-v1_1-xxl", *sorted(path for path in place.glob("*") if path.is_dir())):
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    files = (file for suffix in ("safetensors", "gguf") for file in sorted(place.glob(f"*.{suffix}")))
    return next((file for file in files if _is_t5_file(file)), None)


def _is_t5_file(file: Path) -> bool:
    try:
        return file.suffix == ".gguf" or T5_MARK in open_weights(file).tensors
    except MagiError:
        return False


def _holds_pickles(place: Path) -> bool:
    return any(file.suffix in PICKLE_SUFFIXES for pattern in ("*.*", "*/*.*") for file in place.glob(pattern))


def _token_files(root: Path) -> tuple[Path, ...]:
    return tuple(root / place / "special_tokens.npz" for place in ("", "example/assets", "assets"))
