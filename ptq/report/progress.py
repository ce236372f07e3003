"""Progress and log lines on standard error, with the time that is left."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ptq.report.console import make_console, printable


class Show(Protocol):
    """Called as often as one likes."""

    def __call__(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        """detail: what it is at, such as a block, its loss and the time that is left."""


LINE_SECONDS = 10.0
"""Where there is no terminal, details come at most so often."""


@contextlib.contextmanager
def progress(*, quiet: bool) -> Iterator[Show]:
    """Show stages while the block runs; log lines of ptq appear above them.

    On a terminal: bars that vanish at the end. Elsewhere: one line a stage. quiet: neither, and
    only errors are logged.
    """
    console = make_console(stderr=True)
    with _logging(console, logging.ERROR if quiet else logging.WARNING):
        if quiet:
            yield lambda stage, done, total, detail="": None
        elif not console.is_terminal:
            yield _Lines(console).show
        else:
            with _bars(console) as bars:
                yield _Bars(bars).show


class _Lines:
    """A line when a stage begins, and where it is now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""
        self._last = time.monotonic()

    def show(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        if stage != self._stage:
            self._stage = stage
            self._console.print(printable(f"{stage} ..."))
        elif detail and time.monotonic() - self._last > LINE_SECONDS:
            self._console.print(printable(f"{stage} {done}/{total}: {detail}"), soft_wrap=True)
        else:
            return
        self._last = time.monotonic()


class _Bars:
    """A bar for each stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._current = ""

    def show(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        if stage != self._current:
            self._finish()
            self._current = stage
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(printable(stage), total=total)
        text = printable(f"{stage}: {detail}" if detail else stage)
        self._bars.update(self._tasks[stage], completed=done, total=total, description=text)

    def _finish(self) -> None:
        if self._current:
            task = self._bars.tasks[self._bars.task_ids.index(self._tasks[self._current])]
            self._bars.update(
                task.id, total=max(task.completed, 1), completed=max(task.completed, 1)
            )


def _bars(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


class _ConsoleLog(logging.Handler):
    """Log records as lines above the bars."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        text = printable(f"{record.levelname.lower()}: {record.getMessage()}")
        self._console.print(text, soft_wrap=True)


@contextlib.contextmanager
def _logging(console: Console, level: int) -> Iterator[None]:
    """Send ptq's log to the console while the block runs."""
    logger = logging.getLogger("ptq")
    handler = _ConsoleLog(console)
    handler.setLevel(level)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
