"""One page of everything that was measured: tables, curves, contact sheets and settings, as a single HTML file and as Markdown.

Each measuring command leaves NAME.md (tables), NAME.json (figures; "settings" and "curve" are shown) and perhaps NAME.png in its
folder. The report puts together all of them; the Markdown is what goes into a model card.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magi_core.errors import MagiError
from magi_core.files import atomic_write, read_json_object

TITLES = {
    "scores": "Obedience and forecasts in the synthetic world",
    "drift": "Long videos in the synthetic world",
    "physics-iq": "Physics-IQ",
    "physics-worlds": "Physics-IQ's protocol in the synthetic world",
    "motion": "Motion, in the manner of VBench",
    "votes": "People",
}
_SIZE = 480, 260  # of a curve
_MARGIN = 44
_COLOURS = ("#3b6fe0", "#d9822b", "#2f9e5b", "#b04bc4")
_STYLE = """
:root { color-scheme: light dark; }
body { margin: 2em auto; max-width: 1100px; padding: 0 16px; font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6em; } h2 { margin-top: 2em; border-bottom: 1px solid #8886; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; }
th, td { border: 1px solid #8886; padding: 4px 10px; text-align: left; } td + td { font-variant-numeric: tabular-nums; }
img, svg { max-width: 100%; height: auto; } figure { margin: 1em 0; } figcaption, .quiet { color: #888; }
svg text { fill: currentColor; font-size: 12px; } pre { overflow-x: auto; background: #8882; padding: 10px; }
"""


@dataclass(frozen=True)
class Section:
    """What one command measured."""

    name: str
    markdown: str
    figures: Mapping[str, Any]
    picture: Path | None


def find_sections(folders: Sequence[Path]) -> list[Section]:
    """Everything in the folders of which there is NAME.md and NAME.json, known kinds first. Raises MagiError where there is nothing."""
    found = [
        Section(
            table.stem,
            table.read_text(encoding="utf-8"),
            read_json_object(table.with_suffix(".json")),
            table.with_suffix(".png") if table.with_suffix(".png").is_file() else None,
        )
        for folder in folders
        for table in sorted(Path(folder).glob("*.md"))
        if table.with_suffix(".json").is_file()
    ]
    if not found:
        raise MagiError(
            f"{', '.join(map(str, folders))}: nothing was measured there; run magi score, drift, physics-iq, physics-worlds, motion or votes first"
        )
    order = list(TITLES)
    return sorted(found, key=lambda section: order.index(section.name) if section.name in order else len(order))


def write_report_page(sections: Sequence[Section], path: Path, title: str) -> Path:
    """Write the page at ``path`` (.html), everything inside it, and the tables as .md beside it; returns the latter's path.

    Raises MagiError for another suffix, and where the tables would replace those of a measurement.
    """
    tables = path.with_suffix(".md")
    if path.suffix != ".html":
        raise MagiError(f"--output is {path}; it must end in .html")
    if tables.exists() and path.with_suffix(".json").exists():
        raise MagiError(f"--output is {path}, and {tables} beside it is what was measured; choose another name")
    body = "".join(_section(section) for section in sections)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}</body></html>\n"
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    with atomic_write(tables) as temporary:
        temporary.write_text(
            "\n".join(f"## {_title(section)}\n\n{section.markdown}" for section in sections), encoding="utf-8"
        )
    return tables


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(_title(section))}</h2>\n", to_html(section.markdown)]
    if curve := section.figures.get("curve"):
        parts.append(f"<figure>{curve_svg(curve)}</figure>\n")
    if section.picture is not None:
        data = base64.b64encode(section.picture.read_bytes()).decode()
        parts.append(f'<figure><img alt="contact sheet" src="data:image/png;base64,{data}"></figure>\n')
    if settings := section.figures.get("settings"):
        shown = html.escape(json.dumps(settings, indent=1, ensure_ascii=False))
        parts.append(f"<details><summary>Settings</summary><pre>{shown}</pre></details>\n")
    return "".join(parts)


def _title(section: Section) -> str:
    """What was measured, and of which model where that is known."""
    settings = section.figures.get("settings") or {}
    model = (
        ", ".join([str(settings["model"]), *(lora["name"] for lora in settings.get("loras", ()))])
        if "model" in settings
        else ""
    )
    return TITLES.get(section.name, section.name) + (f": {model}" if model else "")


def to_html(markdown: str) -> str:
    """The little Markdown that the tables are written in: tables, lists, paragraphs, **bold**. Everything else is shown as it stands."""
    blocks = []
    for block in filter(None, re.split(r"\n\s*\n", markdown.strip())):
        lines = block.splitlines()
        if lines[0].startswith("|"):
            rows = [
                [_inline(cell.strip()) for cell in line.strip().strip("|").split("|")]
                for line in lines
                if not _is_rule(line)
            ]
            head, *rest = ("".join(f"<{tag}>{cell}</{tag}>" for cell in row) for tag, row in _tagged(rows))
            blocks.append(f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in rest) + "</table>")
        elif lines[0].startswith("- "):
            blocks.append("<ul>" + "".join(f"<li>{_inline(line.removeprefix('- '))}</li>" for line in lines) + "</ul>")
        else:
            blocks.append("<p>" + "<br>".join(map(_inline, lines)) + "</p>")
    return "\n".join(blocks) + "\n"


def curve_svg(curve: Mapping[str, Any]) -> str:
    """A picture of {"x": name, "y": name, "series": {name: [[x, y, low, high], ...]}}; y from 0, the bars are the intervals."""
    series: Mapping[str, list[list[float]]] = curve["series"]
    points = [point for line in series.values() for point in line]
    head = max(_MARGIN, _MARGIN / 2 + 14 * len(series))  # the names stand above the lines
    width, height = _SIZE[0], _SIZE[1] - _MARGIN + head
    left, right = min(point[0] for point in points), max(point[0] for point in points)
    top = max(max(point[3] for point in points), 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) if right > left else 0.5
        return _MARGIN + across * (width - 2 * _MARGIN), height - _MARGIN - y / top * (height - _MARGIN - head)

    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" fill="none" stroke="currentColor">']
    bottom = height - _MARGIN
    parts.append(f'<path d="M{_MARGIN} {head}V{bottom}H{width - _MARGIN}" opacity=".5"/>')
    for index, (name, line) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        path = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y, *_ in line)
        parts.append(f'<path d="M{path}" stroke="{colour}" stroke-width="2"/>')
        for x, y, low, high in line:
            (across, down), (_, floor), (_, ceiling) = place(x, y), place(x, low), place(x, high)
            parts.append(f'<path d="M{across:.1f} {floor:.1f}V{ceiling:.1f}" stroke="{colour}" opacity=".5"/>')
            parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}" stroke="none"/>')
        parts.append(_text(width - _MARGIN, _MARGIN / 2 + 14 * index, name, "end", colour))
    for x in sorted({point[0] for point in points}):
        parts.append(_text(place(x, 0)[0], bottom + 16, f"{x:g}", "middle"))
    parts += [_text(_MARGIN - 6, place(left, y)[1] + 4, f"{y:.0f}", "end") for y in (0, top / 2, top)]
    parts += [_text(width / 2, height - 6, curve["x"], "middle"), _text(6, _MARGIN / 2, curve["y"], "start")]
    return "".join(parts) + "</svg>"


def _text(x: float, y: float, text: str, anchor: str, colour: str = "currentColor") -> str:
    style = "" if colour == "currentColor" else f' style="fill:{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" stroke="none"{style}>{html.escape(str(text))}</text>'


def _tagged(rows: list[list[str]]) -> list[tuple[str, list[str]]]:
    return [("td" if number else "th", row) for number, row in enumerate(rows)]


def _is_rule(line: str) -> bool:
    return not line.strip("|-: ")


def _inline(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))
