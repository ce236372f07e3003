"""What `--target` texts mean."""

from __future__ import annotations

import pytest

from ptq.errors import UsageError
from ptq.targets.tvm.description import Description


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("llvm", Description("llvm")),
        ("tvm:llvm:native", Description("llvm", cpu="native")),
        ("llvm:x86-64-v3", Description("llvm", cpu="x86-64-v3")),
        ("llvm:x86_64-linux-gnu", Description("llvm", "x86_64-linux-gnu")),
        (
            "llvm:aarch64-linux-gnu:generic+dotprod",
            Description("llvm", "aarch64-linux-gnu", "generic", ("+dotprod",)),
        ),
        ("c", Description("c")),
        ("c:aarch64-linux-gnu", Description("c", "aarch64-linux-gnu")),
    ],
)
def test_parse_and_print(text: str, wanted: Description) -> None:
    assert Description.parse(text) == wanted
    assert wanted.text == text.removeprefix("tvm:")


@pytest.mark.parametrize("text", ["", "cuda", "llvm:", "llvm:a:b", "c:native", "llvm:a-b-c:d:e"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="wanted llvm"):
        Description.parse(text)
