"""A caption in another writer's hand, so that training hears more than the few phrases that captions are made from."""

from __future__ import annotations

import numpy as np

OTHER_WORDS: dict[str, tuple[str, ...]] = {
    "moves": ("drifts", "glides", "heads", "rolls", "floats", "runs", "walks", "flies"),
    "slides": ("drifts", "glides", "heads", "rolls", "creeps", "rushes"),
    "goes": ("drifts", "heads", "wanders", "races", "shifts"),
    "moving": ("drifting", "gliding", "heading", "rolling", "floating", "flying"),
    "travels": ("drifts", "wanders", "sails", "proceeds"),
    "falls": ("will fall", "starts to fall", "has fallen", "is tumbling", "is dropping", "plunges", "sinks", "crashes"),
    "drops": ("will drop", "is dropping", "starts to drop", "is plunging", "tumbles", "sinks"),
    "bounces": ("will bounce", "starts to bounce", "is rebounding", "springs", "ricochets", "hops"),
    "bouncing": ("rebounding", "springing", "ricocheting", "hopping"),
    "stands": ("remains", "rests", "sits", "waits"),
    "stops": ("halts", "freezes", "pauses", "rests"),
    "turns": ("shifts to", "fades to", "goes to", "flips into", "gets", "flashes"),
    "becomes": ("shifts to", "fades to", "goes to", "flips into", "gets", "flashes"),
    "object": ("thing", "figure", "item", "one"),
    "shape": ("thing", "figure", "form", "one"),
    "keeps": ("carries on", "persists in", "is still"),
}
"""Words that say the same in a caption; none is a phrase of the "test" split."""


def roughen(text: str, rng: np.random.Generator) -> str:
    """The caption in another writer's hand: other verbs, meaningless words in between, a misspelling, a full stop."""

    def letters(n: int) -> str:
        return "".join(chr(c) for c in rng.integers(97, 123, n))

    words = []
    for word in text.split():
        if word in OTHER_WORDS and rng.random() < 0.5:
            word = str(rng.choice(OTHER_WORDS[word]))
        elif len(word) > 3 and rng.random() < 0.15:
            place, cut = int(rng.integers(1, len(word) + 1)), int(rng.integers(2))
            word = word[:place] + letters(int(rng.integers(1, 3)) - cut) + word[place + cut :]
        if rng.random() < 0.08:
            words.append(letters(int(rng.integers(2, 9))))
        words.append(word)
    return " ".join(words) + ("." if rng.random() < 0.3 else "")
