"""The text encoder's training: reproducible, in the form that the encoder reads, with labels that say what captions say."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from magi_core.text import SpecialTokens, T5TextEncoder
from magi_core.training.text import CLASSES, OTHER_WORDS, TextTraining, labelled_captions, roughen, train_text
from magi_core.worlds.captions import WORDINGS

SHORT = TextTraining(steps=2, batch=4, clips=4, test_clips=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("nano")
    return folder, train_text(folder, SHORT)


def test_written_files_are_what_the_encoder_reads(trained: tuple[Path, dict[str, float]]) -> None:
    folder, accuracy = trained
    encoder = T5TextEncoder(folder / "t5", max_length=256)
    (caption,) = encoder.encode(["a red circle moves right"])
    assert caption.embedding.shape == (25, 128) and encoder.files.vocabulary is None
    assert SpecialTokens.load(folder / "special_tokens.npz", channels=128).other.std() == pytest.approx(1, abs=0.02)
    assert accuracy.keys() == CLASSES.keys() and all(0 <= value <= 1 for value in accuracy.values())


def test_channels_have_unit_variance(trained: tuple[Path, dict[str, float]]) -> None:
    ids = labelled_captions(4, "train", 0, rough=True).ids
    features = T5TextEncoder(trained[0] / "t5").encode_ids(ids, (ids != 0).long())[ids != 0]
    torch.testing.assert_close(features.std(dim=0), torch.ones(128), atol=0.1, rtol=0)


def test_equal_settings_give_equal_files(trained: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    assert train_text(tmp_path, SHORT) == trained[1]
    for name in ("t5/config.json", "t5/model.safetensors", "special_tokens.npz"):
        assert (tmp_path / name).read_bytes() == (trained[0] / name).read_bytes()


def test_labels_are_read_from_the_text() -> None:
    data = labelled_captions(30, "test", 3)
    for row, labels in zip(data.ids, data.labels, strict=True):
        words = bytes(int(i) - 3 for i in row if i > 1).decode().split()
        for (name, names), label in zip(CLASSES.items(), labels, strict=True):
            if name != "motion":  # told by phrases, not by one word
                said = [word for word in names if word in words]
                assert said == ([names[label]] if label < len(names) else []), (words, name)


def test_no_held_back_phrase_is_heard_in_training() -> None:
    phrases = [
        phrase.replace(" {}", "")
        for field in fields(WORDINGS["test"])
        for phrase in getattr(WORDINGS["test"], field.name)
    ]
    heard = [word for words in OTHER_WORDS.values() for word in words]
    assert not [(word, phrase) for word in heard for phrase in phrases if word == phrase]


def test_roughened_captions_keep_what_they_say() -> None:
    rng = np.random.default_rng(0)
    rough = {roughen("the red star moves up on gray", rng) for _ in range(50)}
    assert len(rough) > 25
    assert all({"red", "up", "on"} <= set(text.rstrip(".").split()) for text in rough)  # short words are never misspelt
