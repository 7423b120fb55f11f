"""The text encoder's training: reproducible, in the form that the encoder reads, with labels that say what captions say."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from magi_core.text import SpecialTokens, T5TextEncoder
from magi_core.training.practice import PRACTICE
from magi_core.training.rough import OTHER_WORDS, roughen
from magi_core.training.shards import put_into_words
from magi_core.training.text import CLASSES, TextTraining, labelled_captions, train_text
from magi_core.worlds.captions import TOWARDS, WORDINGS
from magi_core.worlds.clips import sample_clip

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
    held_back = [phrase for field in fields(WORDINGS["test"]) for phrase in getattr(WORDINGS["test"], field.name)]
    heard = {word for words in OTHER_WORDS.values() for word in words}
    assert not heard & {phrase.replace(" {}", "") for phrase in held_back}
    towards = [word for words in TOWARDS.values() for word in words]
    whole = {phrase.format(word) for phrase in held_back for word in towards}
    rng, rough = np.random.default_rng(0), replace(PRACTICE["full"], rough=1.0)
    for practice in (*PRACTICE.values(), rough):
        clips = [sample_clip(practice.world, 5, rng) for _ in range(300)]
        said = "\n".join(
            f" {caption.rstrip('.')} " for clip in clips for caption in put_into_words(clip, practice, rng)
        )
        assert not [phrase for phrase in whole if f" {phrase} " in said]


def test_a_share_of_the_clips_is_told_in_another_hand() -> None:
    clip = sample_clip(PRACTICE["full"].world, 3, np.random.default_rng(0))

    def told(share: float) -> list[list[str]]:
        rng, practice = np.random.default_rng(1), replace(PRACTICE["full"], rough=share)
        return [put_into_words(clip, practice, rng) for _ in range(40)]

    words = {word for captions in told(0.0) for caption in captions for word in caption.split()}
    strange = [any(word not in words for caption in captions for word in caption.split()) for captions in told(0.5)]
    assert 8 < sum(strange) < 32


def test_roughened_captions_keep_what_they_say() -> None:
    rng = np.random.default_rng(0)
    rough = {roughen("the red star moves up on gray", rng) for _ in range(50)}
    assert len(rough) > 25
    assert all({"red", "up", "on"} <= set(text.rstrip(".").split()) for text in rough)  # short words are never misspelt
