"""What `--target` texts mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptq.errors import UsageError
from ptq.targets.tvm import description
from ptq.targets.tvm.description import Description
from ptq.targets.tvm.features import features_of


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
        ("cuda", Description("cuda")),
        ("tvm:cuda:sm_90", Description("cuda", cpu="sm_90")),
        ("cuda:sm_80+sm_90", Description("cuda", cpu="sm_80", attributes=("+sm_90",))),
        ("opencl", Description("opencl")),
        ("c:aarch64-linux-gnu", Description("c", "aarch64-linux-gnu")),
    ],
)
def test_parse_and_print(text: str, wanted: Description) -> None:
    assert Description.parse(text) == wanted
    assert wanted.text == text.removeprefix("tvm:")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rocm",
        "llvm:",
        "llvm:a:b",
        "c:native",
        "llvm:a-b-c:d:e",
        "cuda:native",
        "opencl:native",
        "opencl:x86_64-linux-gnu",
        "cuda:sm_60",
        "cuda:sm_80+90",
        "cuda:x86_64-linux-gnu:sm_80",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="wanted llvm"):
        Description.parse(text)


def test_native_is_what_the_system_tells_and_not_the_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual machine may give its processor the number of one without AMX."""
    pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")
    from tvm.target import codegen

    monkeypatch.setattr(codegen, "llvm_get_system_cpu", lambda: "rocketlake")
    monkeypatch.setattr(description, "CPU_INFO", tmp_path / "cpuinfo")
    native = Description("llvm", "x86_64-linux-gnu", "native")
    for flags, allowed, wanted in [
        ("avx2 avx_vnni", True, {"avx2", "avx512vnni", "vbmi", "fma", "avxvnni"}),
        ("avx2 amx_tile amx_int8", False, {"avx2", "avx512vnni", "vbmi", "fma"}),
        ("avx2 amx_tile amx_int8", True, {"avx2", "avx512vnni", "vbmi", "fma", "amx"}),
        ("avx2", True, {"avx2", "avx512vnni", "vbmi", "fma"}),
    ]:
        monkeypatch.setattr(description, "allow_tiles", lambda allowed=allowed: allowed)
        (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags}\n")
        found = native.resolved()
        assert features_of(found.target()) == wanted
        assert Description.parse(found.text) == found


def test_a_gpu_is_recorded_with_all_that_it_is_compiled_for() -> None:
    pytest.importorskip("tvm", reason="TVM is not installed: pip install 'ptq-compiler[tvm]'")
    assert Description("cuda", cpu="sm_100", attributes=("+sm_90",)).architectures == (
        "sm_90", "sm_100",
    )  # fmt: skip
    assert Description.parse("cuda").architectures == ("sm_80", "sm_90")
