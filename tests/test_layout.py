"""The house: rooms stand at the root, links mount them in `ptq`, and only `ptq` is installed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from shutil import copy2, copytree, ignore_patterns
from typing import Any

import pytest
from setuptools import find_namespace_packages

ROOT = Path(__file__).parents[1]
ROOMS = ("passes", "kernels", "calib_data")
LINKS = (*ROOMS, "cli.py")
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("name", LINKS)
def test_link_is_relative_and_resolves_to_the_root(name: str) -> None:
    link = ROOT / "ptq" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert link.resolve(strict=True) == (ROOT / name).resolve()


def test_nothing_else_in_ptq_is_a_link() -> None:
    links = {path.name for path in (ROOT / "ptq").rglob("*") if path.is_symlink()}
    assert links == set(LINKS)


def test_kernels_do_not_shadow_the_package_of_that_name() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "__init__.py").exists()


def test_bare_imports_of_the_rooms_are_banned(tmp_path: Path) -> None:
    script = tmp_path / "bare.py"
    names = ("passes", "kernels", "calib_data", "cli")
    script.write_text("".join(f"import {name}\nfrom {name} import x\n" for name in names))
    ruff = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*ruff, "--no-cache", "--select", "TID251", "--output-format", "concise", str(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("TID251") == 2 * len(names), done.stdout + done.stderr


def test_only_ptq_is_installed() -> None:
    find = PYPROJECT["tool"]["setuptools"]["packages"]["find"]
    assert find["namespaces"] is True
    packages = set(find_namespace_packages(str(ROOT), include=find["include"]))
    assert {name.partition(".")[0] for name in packages} == {"ptq"}
    assert {f"ptq.{room}" for room in ROOMS} <= packages


def test_wheel_holds_the_rooms_and_the_sample_sets(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "cli.py"):
        copy2(ROOT / name, source)
    for name in ("ptq", *ROOMS):
        copytree(ROOT / name, source / name, symlinks=True, ignore=ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    done = subprocess.run([*build, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ptq"}
    rooms = {f"ptq/{p.relative_to(ROOT)}" for room in ROOMS for p in (ROOT / room).rglob("*.py")}
    samples = {f"ptq/calib_data/digits_{part}" for part in ("cnn.onnx", "calib.npz", "eval.npz")}
    assert rooms | samples | {"ptq/cli.py", "ptq/py.typed"} <= names
