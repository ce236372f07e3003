"""Text that Markdown, and the HTML it becomes, take literally: names come from models."""

from __future__ import annotations

_MARKUP = "\\`*_[]|#~"


def literal(text: object) -> str:
    """One line of text with every character of markup made harmless."""
    flat = "".join(c if c.isprintable() else " " for c in " ".join(str(text).split()))
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in _MARKUP else c for c in flat)
