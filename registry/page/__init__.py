"""The page: one HTML file with its style, its scripts and what it shows, which asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import Any

SCRIPTS = ("story.js", "lanes.js", "lists.js", "page.js")
"""In the order in which they are run."""


def document(story: dict[str, Any], *, title: str, still: str) -> str:
    """The page that shows `story` (see story.js); without scripts it shows `still`, a picture as SVG."""
    style = _text("page.css")
    scripts = [_text(name) for name in SCRIPTS]
    parts = {
        "policy": _policy(style, scripts),
        "title": escape(readable(title)),
        "style": f"<style>{style}</style>",
        "still": still,
        "story": _packed(story),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    head, *rest = _text("page.html").split("{{")
    filled = (f"{parts[name]}{text}" for name, _, text in (part.partition("}}") for part in rest))
    return "".join([head, *filled])


def readable(text: str) -> str:
    """A text without what no file may hold: half characters, and controls other than line ends."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _policy(style: str, scripts: Iterable[str]) -> str:
    """Nothing is fetched, and no other script or style is run: were a name taken for one, it would be refused."""
    hashes = " ".join(map(_hash, scripts))
    return f"default-src 'none'; style-src {_hash(style)}; script-src {hashes}; img-src data:"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _packed(story: dict[str, Any]) -> str:
    plain = json.dumps(story, separators=(",", ":")).encode()
    return base64.b64encode(zlib.compress(plain, 9)).decode()


def _text(name: str) -> str:
    return files(__name__).joinpath(name).read_text("utf-8")
