"""What every command does alike: options as one dataclass, errors as messages and exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from ptq.errors import PtqError

if TYPE_CHECKING:
    from rich.console import Console

    from ptq.report.options import Common

T = TypeVar("T")
Decorator = Callable[[Callable[..., None]], Callable[..., None]]

USAGE, MISSING, INTERNAL, INTERRUPTED = 2, 4, 70, 130
_DEBUG = "ptq.debug"
_NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "1")
"""onnxruntime >= 1.32 reports to its makers unless told not to before it is imported."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Commands(click.Group):
    """Turns every exception into a message and the documented exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        os.environ.setdefault(*_NO_TELEMETRY)
        with _terminable():
            try:
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except BrokenPipeError:
                _close_stdout()
                ctx.exit(0)
            except (Exception, KeyboardInterrupt) as error:
                if ctx.meta.get(_DEBUG):
                    traceback.print_exc()
                _fail(ctx, *_explained(error))


def _explained(error: BaseException) -> tuple[str, int]:
    """What to say about an exception, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing half-written is left", INTERRUPTED
    if isinstance(error, PtqError):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("ptq"):
        return f"the package {error.name} is not installed: pip install ptq-compiler", MISSING
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"{error}: make room, or set TMPDIR to another folder", USAGE
    what = " ".join(f"{type(error).__name__}: {error}".split())[:400]
    return f"internal error: {what}. This is a bug in ptq; --debug prints where", INTERNAL


def _fail(ctx: click.Context, message: str, code: int) -> NoReturn:
    from ptq.report.console import printable

    click.echo(f"ptq: {printable(message)}", err=True)
    ctx.exit(code)


def _close_stdout() -> None:
    """Whoever read our output has gone; keep the interpreter from writing the rest at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM cleans up as Ctrl-C does while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def options_as(kind: Callable[..., T], *options: Decorator) -> Callable[[Callable[[T], None]], Any]:
    """Declare click options; the command gets them as one `kind`."""

    def decorate(command: Callable[[T], None]) -> Any:
        def run(**values: Any) -> None:
            command(kind(**values))

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        made: Callable[..., None] = run
        for option in reversed(options):
            made = option(made)
        return made

    return decorate


def remember_debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Callback of --debug: errors print their traceback too."""
    ctx.meta[_DEBUG] = value


def emit(
    options: Common, head: dict[str, Any], value: T, show: Callable[[T, Console], None]
) -> None:
    """Print a result: one JSON object, or tables; nothing with --quiet alone."""
    import msgspec

    from ptq.report.console import make_console

    if options.as_json:
        record = {**head, **msgspec.to_builtins(value)}
        click.echo(msgspec.json.format(msgspec.json.encode(record), indent=2).decode())
    elif not options.quiet:
        show(value, make_console())
