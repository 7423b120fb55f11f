"""People compare two models' videos, blind: a page to vote on, and the votes as a table of wins, ties and losses.

Notable: which side shows which model, and in what order the pairs come, follows from the seed and the pair's name, so the page says
neither, and the votes are read with nothing but themselves. Videos are named by pair and side, never by model.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magi_core.errors import MagiError, shorten
from magi_core.evaluation.intervals import Share
from magi_core.files import atomic_write, read_json_object

QUESTIONS = {
    "overall": "Which is better overall?",
    "motion": "Which moves better?",
    "instruction": "Which follows the text better?",
    "visual": "Which has the better picture?",
}
ANSWERS = ("left", "same", "right")
EMBEDDED_BYTES = 32 << 20
"""Up to so many bytes of videos lie in the page itself; more are copied beside it."""
_KINDS = {".mp4": "video/mp4", ".webm": "video/webm"}
log = logging.getLogger(__name__)
_TEMPLATE = Path(__file__).with_name("vote.html")


@dataclass(frozen=True)
class Pair:
    """The two videos of one prompt."""

    name: str
    first: Path
    second: Path
    prompt: str


@dataclass(frozen=True)
class Verdict:
    """How often the first model won, of the votes on one question."""

    question: str
    wins: Share
    ties: Share
    losses: Share

    @property
    def preference(self) -> Share:
        """Wins among the votes that were no ties."""
        return Share(self.wins.right, self.wins.right + self.losses.right)


def find_pairs(first: Path, second: Path, prompts: Mapping[str, str] | None = None) -> list[Pair]:
    """Videos of the same name (without suffix) in two folders; prompts by name. Raises MagiError where there are none in common."""
    videos = [
        {path.stem: path for path in sorted(Path(folder).glob("*")) if path.suffix.lower() in _KINDS}
        for folder in (first, second)
    ]
    names = sorted(videos[0].keys() & videos[1].keys())
    unreadable = [name for name in names if not name.isprintable()]
    if unreadable:
        raise MagiError(f"the name of the video {shorten(unreadable[0])} cannot be shown on a page; rename it")
    if not names:
        raise MagiError(
            f"{first} and {second} have no .mp4 or .webm videos of the same name; name the videos of a pair alike"
        )
    return [Pair(name, videos[0][name], videos[1][name], (prompts or {}).get(name, "")) for name in names]


def write_page(
    pairs: Sequence[Pair], path: Path, names: tuple[str, str], *, seed: int = 0, embed_up_to: int = EMBEDDED_BYTES
) -> Path | None:
    """Write the page on which to vote; it works offline. names: of the two models, shown by the table of votes alone.

    Returns the folder beside the page that holds the videos, where they are more than ``embed_up_to`` bytes, else None.
    """
    files = [file for pair in pairs for file in (pair.first, pair.second)]
    beside = path.with_name(f"{path.stem}-videos") if sum(file.stat().st_size for file in files) > embed_up_to else None
    ordered = sorted(pairs, key=lambda pair: _hash(seed, "order", pair.name))
    document = {
        "page": _hash(seed, *names, *(pair.name for pair in ordered))[:16],
        "seed": seed,
        "names": list(names),
        "questions": [{"name": name, "text": text} for name, text in QUESTIONS.items()],
        "pairs": [
            {
                "name": pair.name,
                "prompt": pair.prompt,
                "left": _place(pair.second if swapped(seed, pair.name) else pair.first, beside, f"{number:03}-left"),
                "right": _place(pair.first if swapped(seed, pair.name) else pair.second, beside, f"{number:03}-right"),
            }
            for number, pair in enumerate(ordered, 1)
        ],
    }
    data = json.dumps(document, ensure_ascii=False).replace("<", "\\u003c")  # no text may end the script element
    with atomic_write(path) as temporary:
        temporary.write_text(_TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", data), encoding="utf-8")
    return beside


def swapped(seed: int, name: str) -> bool:
    """Whether the second model's video is shown on the left."""
    return int(_hash(seed, "side", name)[0], 16) % 2 == 1


def count_votes(files: Sequence[Path]) -> tuple[tuple[str, str], list[Verdict], int]:
    """(names of the models, a verdict per question, number of voters) of exported votes; of a named voter's files the fullest counts.

    Raises MagiError for a file that is no export, or that compares other models or videos than the first one does.
    """
    if not files:
        raise MagiError("there are no votes; name the JSON files that the page saved")
    counts: dict[str, Counter[str]] = {question: Counter() for question in QUESTIONS}
    documents = [read_json_object(file) for file in files]
    about = _checked(documents[0], files[0])[1]
    by_voter: dict[str, dict[str, dict[str, str]]] = {}
    for file, document in zip(files, documents, strict=True):
        votes, asked = _checked(document, file)
        if asked != about:
            raise MagiError(f"{file} is about another page than {files[0]}; count the votes of each page by themselves")
        voter = str(document.get("voter") or "").strip().casefold() or f"{file}"
        if voter in by_voter:
            log.warning("%s is another file of %s; the one with more answers counts", file, document["voter"])
        by_voter[voter] = max(by_voter.get(voter, {}), votes, key=lambda each: sum(map(len, each.values())))
    for votes in by_voter.values():
        for name, answers in votes.items():
            for question, answer in answers.items():
                won = "right" if swapped(documents[0]["seed"], name) else "left"
                counts[question]["tie" if answer == "same" else "win" if answer == won else "loss"] += 1
    verdicts = []
    for question, count in counts.items():
        shares = (Share(count[outcome], count.total()) for outcome in ("win", "tie", "loss"))
        verdicts.append(Verdict(question, *shares))
    return about[1], verdicts, len(by_voter)


def votes_markdown(names: tuple[str, str], verdicts: Sequence[Verdict], voters: int) -> str:
    """The table of wins, ties and losses."""
    first, second = names
    lines = [
        f"| {first} against {second} | {first} better | the same | {second} better | preferred where not the same |",
        "|---|---|---|---|---|",
    ]
    for verdict in verdicts:
        shares = (verdict.wins, verdict.ties, verdict.losses, verdict.preference)
        lines.append(f"| {verdict.question} (n={verdict.wins.total}) | " + " | ".join(map(_share, shares)) + " |")
    return "\n".join(
        [*lines, "", f"Blind, sides and order by chance; {voters} voters. Each figure: value [95 % interval].", ""]
    )


def votes_json(names: tuple[str, str], verdicts: Sequence[Verdict], voters: int) -> str:
    figures = {
        verdict.question: {
            name: {"votes": share.right, "of": share.total, "interval": share.interval}
            for name, share in (("wins", verdict.wins), ("ties", verdict.ties), ("losses", verdict.losses))
        }
        for verdict in verdicts
    }
    return json.dumps({"settings": {"models": names, "voters": voters}, "figures": figures}, indent=1) + "\n"


def _checked(
    document: Mapping[str, Any], file: Path
) -> tuple[dict[str, dict[str, str]], tuple[object, tuple[str, str]]]:
    """The votes, and which page and models they are about."""
    wrong = MagiError(f"{file} holds no votes; give the files that the page's button saved")
    votes, names = document.get("votes"), document.get("names")
    if document.get("format") != "magi-votes" or not isinstance(document.get("seed"), int):
        raise wrong
    if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise wrong
    if not isinstance(votes, dict) or not all(isinstance(answers, dict) for answers in votes.values()):
        raise wrong
    for name, answers in votes.items():
        for question, answer in answers.items():
            if question not in QUESTIONS or answer not in ANSWERS:
                raise MagiError(
                    f"{file}: the vote on {shorten(name)} is {shorten(question)}: {shorten(answer)}, which is none"
                )
    return votes, (document.get("page"), (names[0], names[1]))


def _place(video: Path, beside: Path | None, name: str) -> str:
    """The video's address in the page."""
    suffix = video.suffix.lower()
    if beside is None:
        return f"data:{_KINDS[suffix]};base64,{base64.b64encode(video.read_bytes()).decode()}"
    with atomic_write(beside / f"{name}{suffix}") as temporary:
        shutil.copyfile(video, temporary)
    return f"{beside.name}/{name}{suffix}"


def _share(share: Share) -> str:
    if not share.total:
        return "-"
    low, high = share.interval
    return f"{100 * share.value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _hash(*values: object) -> str:
    return hashlib.sha256("\0".join(map(str, values)).encode()).hexdigest()
