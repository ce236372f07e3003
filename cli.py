"""The command line: parses, calls ptq, prints. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import click

from ptq import __version__
from ptq.commands import COMMANDS
from ptq.report.commands import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ptq")
def main() -> None:
    """Quantise a trained network after training, and compile it to integers.

    \b
    Exit codes: 0 done, 1 a gate failed, 2 wrong usage, 3 model invalid, unsafe or
    unsupported, 4 missing dependency, 5 no precisions fit the budgets, 70 internal error,
    130 interrupted.
    """


for _command in COMMANDS:
    main.add_command(_command)


if __name__ == "__main__":
    main()
