"""Options that say how a run goes about it, and change nothing of its result."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

_LOG = logging.getLogger("ptq")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class Size(click.ParamType[int]):
    """A size such as 512M or 2G, in bytes (K is 1024)."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """The number of bytes, or a usage error."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r}: wanted a size such as 512M or 2G", param, ctx)
        return int(float(match[1]) * 1024 ** _POWERS[match[2].upper()])


RUN = (
    click.option(
        "--memory",
        type=Size(),
        help="What tensors of all samples may take while learning; more goes to disk.  "
        "[default: 2G]",
    ),
    click.option(
        "--resume", is_flag=True, help="Go on where an interrupted run of the same kind stopped."
    ),
)


@contextlib.contextmanager
def kept_if_interrupted(out: Path) -> Iterator[Path]:
    """A folder beside `out` for what a run has finished.

    It goes when the block ends, well or with an error that would come again; it stays when the run
    is interrupted or killed, for `--resume`.
    """
    folder = out.with_name(f"{out.name}.unfinished")
    try:
        yield folder
    except KeyboardInterrupt:
        if folder.is_dir():
            _LOG.warning("interrupted; the same command with --resume goes on from %s", folder)
        raise
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
