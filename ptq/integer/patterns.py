"""Patterns over the nodes of a graph: globs, or regular expressions as 're:...'."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

import onnx_ir as ir

from ptq.errors import RecipeError


def matching(nodes: Sequence[ir.Node], pattern: str, option: str) -> list[ir.Node]:
    """The nodes whose name or operator type is like the pattern.

    option: where the pattern comes from, for the message.

    Raises:
        RecipeError: none is, or the pattern is no regular expression.
    """
    hits = [node for node in nodes if matches(pattern, node)]
    if not hits:
        names = ", ".join(str(node.name) for node in nodes[:4])
        raise RecipeError(
            f"{option} {pattern!r} matches no node name or op type; names are like {names}"
        )
    return hits


def matches(pattern: str, node: ir.Node) -> bool:
    """True if the node's name or operator type is like the pattern."""
    words = (node.name or "", node.op_type)
    if pattern.startswith("re:"):
        return any(re.search(pattern[3:], word) for word in words)
    return any(fnmatch.fnmatchcase(word, pattern) for word in words)
