"""Prompt cleaning as the text encoder saw it in training: lower case, no links, no mark-up, no file names, no article numbers.

The steps and their order are the caption-cleaning routine of DeepFloyd-IF and PixArt (spec section 10), applied twice. They are
substitutions, kept as data below: each line removes or replaces one kind of thing. Mark-up is parsed with BeautifulSoup and broken
Unicode mended with ftfy; without them the standard library does what it can, which is the same for ordinary prompts.
"""

from __future__ import annotations

import html
import logging
import re
import unicodedata
import warnings
from collections.abc import Iterable
from html.entities import html5
from html.parser import HTMLParser
from urllib.parse import unquote_plus

from magi_core.errors import MagiError

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 10_000
"""Longer prompts are cut before cleaning: 800 tokens never need more."""

Rule = tuple[re.Pattern[str], str]


def _rules(*rules: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


_HOST = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE_TYPES = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"

_LINKS = _rules(
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_HOST})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_HOST})", ""),
)
_SYMBOLS = _rules(
    (r"@\w+\b", ""),  # nicknames
    ("[\u31c0-\u31ef]+", ""),  # CJK strokes
    ("[\u31f0-\u31ff]+", ""),  # Katakana extensions
    ("[\u3200-\u32ff]+", ""),  # enclosed CJK
    ("[\u3300-\u33ff]+", ""),  # CJK compatibility
    ("[\u3400-\u4dbf]+", ""),  # CJK ideographs, extension A
    ("[\u4dc0-\u4dff]+", ""),  # hexagrams
    ("[\u4e00-\u9fff]+", ""),  # CJK ideographs
    (
        "[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),  # a line break written as two characters
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{_FILE_TYPES}", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_CJK = re.compile("[\u31c0-\u9fff]")
"""All that the rules above remove of it."""
_JOINTS = re.compile(r"[-_]")
_MANY_JOINTS = 3  # more hyphens and underscores than this, and they all stand for spaces
_WORDS = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # article numbers: jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE_TYPES}(\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),  # sizes such as 1920x1080, also with a Cyrillic x
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),  # a space after a comma, full stop or slash
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),  # quotes around everything
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(prompt: str) -> str:
    """The prompt as it is given to the tokenizer: cleaned twice, as the reference does (the second pass may remove more).

    A prompt of more than ``MAX_CHARACTERS`` is cut, with a logged warning; so is said what an artist would not expect to be left out:
    Chinese, or all of it. Raises MagiError when it is no string.
    """
    if not isinstance(prompt, str):
        raise MagiError(f"a prompt must be text, not {type(prompt).__name__} ({prompt!r:.60})")
    if len(prompt) > MAX_CHARACTERS:
        logger.warning("the prompt has %d characters; only the first %d are read", len(prompt), MAX_CHARACTERS)
    cleaned = clean_once(clean_once(prompt[:MAX_CHARACTERS]))
    if prompt.strip() and not cleaned:
        logger.warning(
            "nothing of the prompt '%.60s' is read; say it in English words, not as a link or a file's name", prompt
        )
    elif _CJK.search(prompt):
        logger.warning("the Chinese characters of the prompt '%.60s' are not read; say it in English", prompt)
    return cleaned


def clean_once(text: str) -> str:
    """One pass of the routine; see ``clean_caption``."""
    text = _apply(_LINKS, unquote_plus(text).strip().lower())
    text = _apply(_SYMBOLS, _html_text(text))
    if len(_JOINTS.findall(text)) > _MANY_JOINTS:
        text = _JOINTS.sub(" ", text)
    text = html.unescape(html.unescape(_mend(text))).strip()
    return _apply(_WORDS, text).strip()


def _apply(rules: Iterable[Rule], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _html_text(text: str) -> str:
    """The text of a piece of HTML; broken mark-up that no parser accepts is kept as it is."""
    try:
        from bs4 import BeautifulSoup
        from bs4.exceptions import ParserRejectedMarkup
    except ImportError:
        return plain_html_text(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it wonders about text that looks like a file name or an address
            return str(BeautifulSoup(text, features="html.parser").text)
    except ParserRejectedMarkup:
        return text


def plain_html_text(text: str) -> str:
    """The same with the standard library alone: comments, scripts and styles are left out, entities become characters."""
    parser = _TextOfHtml()
    try:
        parser.feed(text)
        parser.close()
    except AssertionError:  # how html.parser rejects broken declarations
        return text
    return "".join(parser.parts)


class _TextOfHtml(HTMLParser):
    HIDDEN = frozenset({"script", "style", "template", "rt", "rp"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.parts: list[str] = []
        self.hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in self.HIDDEN:
            self.hidden.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """``<br/>`` has no text."""

    def handle_endtag(self, tag: str) -> None:
        if tag in self.hidden:
            del self.hidden[self.hidden.index(tag) :]

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)

    def handle_charref(self, name: str) -> None:
        self.handle_data(html.unescape(f"&#{name};"))

    def handle_entityref(self, name: str) -> None:
        self.handle_data(html5.get(f"{name};", f"&{name}"))


def _mend(text: str) -> str:
    """Unicode repaired: mojibake, ligatures, wide letters, curly quotes, control characters."""
    try:
        import ftfy
    except ImportError:
        return plain_mend(text)
    return str(ftfy.fix_text(text))


_MOJIBAKE = re.compile("[ÂÃâã][\u0080-\u00bf\u201a-\u2122€]")
_LIGATURES = re.compile("[\u0132\u0133\ufb00-\ufb06]")
_WIDE = re.compile("[\uff01-\uffef\u3000]")
_CONTROL = re.compile("[\u0000-\u0008\u000b\u000e-\u001f\u007f\u206a-\u206f\ufeff\ufff9-\ufffb]")


def plain_mend(text: str) -> str:
    """The same with the standard library alone; text decoded with the wrong character set is reported, not repaired."""
    if _MOJIBAKE.search(text):
        logger.warning(
            "the prompt looks garbled ('%.40s'); repairing it needs the package 'ftfy': pip install 'comfyui-magi[text]'",
            text,
        )
    for pattern in (_LIGATURES, _WIDE):
        text = pattern.sub(lambda match: unicodedata.normalize("NFKC", match.group()), text)
    text = re.sub("[\u02bc\u2018-\u201b]", "'", re.sub("[\u201c-\u201f]", '"', text))
    text = re.sub("\r\n|\r|\u2028|\u2029", "\n", text)
    return unicodedata.normalize("NFC", _CONTROL.sub("", text))
