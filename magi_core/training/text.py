"""magi-nano's text encoder: a tiny byte-level T5 that learns what a caption says, then is frozen.

Notable:

* It is trained to classify: colour, shape, motion, size, speed and background, each with a class for "not mentioned", read from the
  features by attention pooling. The heads are thrown away; the features that they could read are what the DiT reads later.
* Training captions are roughened (other verbs, filler words, misspellings), so that meaning is read from the words that carry it
  and an unknown word does no harm.
* Accuracy is measured on the wordings of the "test" split, whose verb phrases training never sees.
* Every output channel is scaled to unit variance by folding the factor into the final norm's weight.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from magi_core.files import atomic_write
from magi_core.text.cleaning import clean_caption
from magi_core.text.encoder import T5TextEncoder
from magi_core.text.tokenizer import BYTE_VOCABULARY, byte_ids
from magi_core.text.weights import T5Sizes, build_t5, t5_document
from magi_core.training.muon import Muon
from magi_core.training.rough import roughen
from magi_core.worlds.captions import Description, describe
from magi_core.worlds.clips import MOTIONS, WORLDS, sample_clip
from magi_core.worlds.shapes import BACKGROUNDS, COLOURS, SHAPES

logger = logging.getLogger(__name__)

SIZES = T5Sizes(vocab_size=BYTE_VOCABULARY, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4)
MAX_BYTES = 128  # no caption is longer than 80

CLASSES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "motion": MOTIONS,
    "size": ("small", "big"),
    "speed": ("slowly", "quickly"),
    "background": tuple(BACKGROUNDS),
}
"""What a caption can say; the class after the last one is "not mentioned"."""


@dataclass(frozen=True)
class TextTraining:
    """How the text encoder is trained."""

    steps: int = 300
    batch: int = 96
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    warm_up: int = 20
    dropout: float = 0.1
    clips: int = 3000
    """Training clips of each world; every one gives three captions."""
    test_clips: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Labelled:
    """Captions as ids [n, L] int64 (0 = padding) and what they say: labels [n, attributes] int64."""

    ids: Tensor
    labels: Tensor


class AttributeHeads(nn.Module):
    """Class scores read from text features: one learned query per attribute pools the tokens, one linear layer classifies."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(CLASSES), channels) * channels**-0.5)
        self.classifiers = nn.ModuleList(nn.Linear(channels, len(names) + 1) for names in CLASSES.values())

    def forward(self, features: Tensor, mask: Tensor) -> list[Tensor]:
        """features [B, L, C], mask [B, L] -> scores [B, classes] for each attribute."""
        weights = (features @ self.queries.T).masked_fill(~mask[..., None], -math.inf).softmax(dim=1)
        pooled = weights.transpose(1, 2) @ features
        return [classify(pooled[:, i]) for i, classify in enumerate(self.classifiers)]

    @torch.no_grad()
    def rescale(self, scale: Tensor) -> None:
        """Expect features divided by ``scale`` [C] from now on."""
        self.queries.mul_(scale)
        for classify in self.classifiers:
            assert isinstance(classify, nn.Linear)  # noqa: S101 - for the type checker
            classify.weight.mul_(scale)


def train_text(folder: Path, settings: TextTraining = TextTraining()) -> dict[str, float]:
    """Train the text encoder and write ``folder``/t5/ and ``folder``/special_tokens.npz; equal settings give equal files.

    Returns the accuracy (0..1) of each attribute on unseen wordings, measured through the written float16 file.
    """
    torch.manual_seed(settings.seed)
    network, heads = build_t5(SIZES), AttributeHeads(SIZES.d_model)
    look_near(network)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = settings.dropout
    data = labelled_captions(settings.clips, "train", settings.seed, rough=True)
    matrices = [p for name, p in network.named_parameters() if "block" in name and "bias" not in name and p.ndim == 2]
    others = [p for p in (*network.parameters(), *heads.parameters()) if all(p is not m for m in matrices)]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=settings.muon_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=settings.adam_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / settings.warm_up, 2 * (1 - step / settings.steps), 1.0)
        )
        for optimizer in optimizers
    ]
    for step in range(settings.steps):
        rows = torch.randint(len(data.ids), (settings.batch,))
        ids, labels = _crop(data.ids[rows]), data.labels[rows]
        features = network(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
        scores = heads(features, ids != 0)
        loss = torch.stack([cross_entropy(s, labels[:, i]) for i, s in enumerate(scores)]).sum()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        if step % 20 == 0 or step == settings.steps - 1:
            logger.info("text: step %d of %d, loss %.4f", step + 1, settings.steps, loss.item())
    network.train(False)
    normalise(network, heads, data.ids[:: max(1, len(data.ids) // 2000)])
    write_encoder(network, folder / "t5")
    write_special_tokens(folder / "special_tokens.npz", SIZES.d_model, settings.seed)
    return measure(T5TextEncoder(folder / "t5", max_length=MAX_BYTES), heads, settings)


def labelled_captions(clips: int, split: str, seed: int, *, rough: bool = False) -> Labelled:
    """Three captions of each of ``clips`` clips of every world, in the wordings of a split ("train" or "test").

    rough: three of five are roughened.
    """
    rng = np.random.default_rng([seed, 1 if split == "test" else 0])
    said = []
    for world in WORLDS.values():
        for _ in range(clips):
            clip = sample_clip(world, 3, rng)
            said += [describe(clip, chunk, rng, split=split) for chunk in range(3)]
    texts = [roughen(d.text, rng) if rough and rng.random() < 0.6 else d.text for d in said]
    rows = [byte_ids(clean_caption(text), MAX_BYTES) for text in texts]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return Labelled(ids, torch.tensor([_labels(description) for description in said]))


@torch.no_grad()
def look_near(network: nn.Module) -> None:
    """Start three heads of the relative bias on neighbouring bytes (a little before, a little after, further before), one on all.

    Words are runs of bytes; from a flat start, learning to look at neighbours takes most of the training.
    """
    bias = network.get_parameter("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    distance = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 9, 13, 19, 27, 39, 54, 77, 109])  # middle of each bucket
    offset = torch.cat([-distance, distance]).float()  # key minus query, by bucket
    for head, (centre, spread) in enumerate(((-1.5, 1.0), (1.5, 1.0), (-4.0, 2.0))):
        bias[:, head] = (-0.5 * ((offset - centre) / spread) ** 2).clamp_min(-8.0)


def normalise(network: nn.Module, heads: AttributeHeads, ids: Tensor) -> None:
    """Scale every output channel to unit variance over the real tokens of ``ids`` [n, L]; the heads are told."""
    features = _features(network, ids)[ids != 0]
    scale = features.std(dim=0).clamp_min(1e-3)
    with torch.no_grad():
        network.get_parameter("encoder.final_layer_norm.weight").div_(scale)
    heads.rescale(scale)
    mean = (features / scale).mean(dim=0)
    logger.info("text: channels scaled to unit variance; their means have rms %.2f", mean.square().mean().sqrt())


def write_encoder(network: nn.Module, folder: Path) -> None:
    """Write config.json and model.safetensors (float16) as Transformers and ``T5TextEncoder`` read them."""
    document = {"model_type": "t5", "architectures": ["T5EncoderModel"], "tokenizer_class": "ByT5Tokenizer"}
    document |= t5_document(SIZES) | {"pad_token_id": 0, "eos_token_id": 1}
    with atomic_write(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    tensors = {name: t.half().contiguous() for name, t in network.state_dict().items() if "embed_tokens" not in name}
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def write_special_tokens(path: Path, channels: int, seed: int) -> None:
    """Write random special tokens with the variance of text features (1), in the release's layout."""
    rng = np.random.default_rng([seed, 2])
    rows = {"caption_token": 1, "logo_token": 1, "other_tokens": 100}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: rng.standard_normal((n, channels)) for name, n in rows.items()})


def measure(encoder: T5TextEncoder, heads: AttributeHeads, settings: TextTraining) -> dict[str, float]:
    """Accuracy (0..1) of each attribute on the test split's wordings."""
    data = labelled_captions(settings.test_clips, "test", settings.seed)
    right = torch.zeros(len(CLASSES))
    with torch.no_grad():
        for ids, labels in zip(torch.split(data.ids, 256), torch.split(data.labels, 256), strict=True):
            ids = _crop(ids)
            scores = heads(encoder.encode_ids(ids, (ids != 0).long()), ids != 0)
            right += torch.tensor([float((s.argmax(1) == labels[:, i]).sum()) for i, s in enumerate(scores)])
    accuracy = {name: float(n) / len(data.ids) for name, n in zip(CLASSES, right, strict=True)}
    logger.info(
        "text: %d unseen captions, accuracy %s",
        len(data.ids),
        ", ".join(f"{name} {value:.2%}" for name, value in accuracy.items()),
    )
    return accuracy


def _labels(said: Description) -> list[int]:
    """Indices into ``CLASSES``. Size, speed and background are told by their own word or not at all."""
    words = said.text.split()
    told = {"colour": said.colour, "shape": said.shape, "motion": said.motion}
    for name in ("size", "speed", "background"):
        told[name] = next((word for word in CLASSES[name] if word in words), None)
    return [names.index(value) if (value := told[name]) else len(names) for name, names in CLASSES.items()]


def _crop(ids: Tensor) -> Tensor:
    """Without the columns that are padding in every row."""
    return ids[:, : int((ids != 0).sum(dim=1).max())]


@torch.no_grad()
def _features(network: nn.Module, ids: Tensor) -> Tensor:
    parts: Sequence[Tensor] = [
        network(input_ids=part, attention_mask=(part != 0).long()).last_hidden_state for part in torch.split(ids, 256)
    ]
    return torch.cat(list(parts))
