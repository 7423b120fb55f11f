"""A plan as a picture: one bar a chunk along the seconds, one colour a shot, keyframes as dots."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from magi_core.images import Frames
from magi_core.plan import Plan

WIDTH, ROW, HEAD, MARGIN = 960, 26, 34, 12
MOST_ROWS = 60
"""Chunks drawn; of longer plans the rest is counted in the last line."""
INK, GROUND = (235, 235, 235), (24, 24, 28)


def draw_plan(plan: Plan) -> Frames:
    """uint8 [H, W, 3]: a line for every chunk with its time, its frames and its prompt."""
    shown = plan.chunks[:MOST_ROWS]
    hidden = len(plan.chunks) - len(shown)
    height = HEAD + ROW * (len(shown) + bool(hidden)) + 2 * MARGIN
    picture = Image.new("RGB", (WIDTH, height), GROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    head = f"{len(plan.chunks)} chunks, {plan.frames} frames, {plan.seconds:.2f} s at {float(plan.fps):g} frames per second"
    draw.text((MARGIN, MARGIN), head, fill=INK, font=font)
    for row, chunk in enumerate(shown):
        top = HEAD + MARGIN + row * ROW
        hue = chunk.shot * 0.381966 % 1  # the golden angle keeps neighbours apart
        colour = tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.38, 0.5))
        draw.rectangle((MARGIN, top, WIDTH - MARGIN, top + ROW - 4), fill=colour)
        if chunk.keyframe is not None:
            draw.ellipse((MARGIN + 6, top + 6, MARGIN + 16, top + 16), fill=INK)
        end = chunk.start_second + float(chunk.frames / plan.fps)
        words = f"{chunk.start_second:6.2f} - {end:.2f} s   {chunk.frames:2d} frames   {' '.join(chunk.prompt.split())}"
        draw.text((MARGIN + 22, top + 3), _fitting(words, font), fill=INK, font=font)
    if hidden:
        draw.text((MARGIN, HEAD + MARGIN + len(shown) * ROW), f"... and {hidden} more chunks", fill=INK, font=font)
    return np.asarray(picture)


def _fitting(words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    room = WIDTH - 2 * MARGIN - 30
    words = words[:400]
    if font.getlength(words) <= room:
        return words
    while words and font.getlength(words + "...") > room:
        words = words[:-1]
    return words + "..."
