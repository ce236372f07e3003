"""Commands that have a file of their own; cli.py adds them to `ptq`. Heavy imports inside them."""

from ptq.commands.bench import bench
from ptq.commands.compile import compile
from ptq.commands.debug import debug
from ptq.commands.explore import explore
from ptq.commands.regress import regress
from ptq.commands.report import report

COMMANDS = (bench, compile, debug, explore, regress, report)
