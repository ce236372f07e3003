"""The commands, a file each; cli.py adds them to `ptq`. Heavy imports inside them."""

from ptq.commands.bench import bench
from ptq.commands.compare import compare
from ptq.commands.compile import compile
from ptq.commands.debug import debug
from ptq.commands.eval import evaluate
from ptq.commands.explore import explore
from ptq.commands.inspect import inspect
from ptq.commands.quantize import quantize
from ptq.commands.regress import regress
from ptq.commands.report import report
from ptq.commands.verify import verify

COMMANDS = (
    bench, compare, compile, debug, evaluate, explore, inspect, quantize, regress, report, verify,
)  # fmt: skip
