"""Every error that ptq raises on purpose, as one tree.

    PtqError                    exit 70  a bug in ptq unless a subclass says otherwise
    ├── GateError               exit 1   a gate failed: a verification or a regression limit
    ├── UsageError              exit 2   the call is wrong; correct it and call again
    │   ├── RecipeError                  a recipe or an option has a value that cannot be
    │   ├── CalibrationError             samples are missing, misshapen, or not numbers
    │   └── OutputError                  the result cannot be written where it was asked for
    ├── ModelError              exit 3   the model cannot be used
    │   ├── InvalidModelError            not an ONNX model, or one that breaks ONNX's rules
    │   ├── UnsafeModelError             refused before anything else reads it
    │   └── UnsupportedModelError        valid, but not something that ptq can do as asked
    ├── MissingDependencyError  exit 4   an optional package or a device is not there
    ├── BudgetError             exit 5   no choice of precisions fits the budgets
    └── InterruptedRunError     exit 130 stopped by the user; nothing half-written is left

A message says what, where, got, wanted and the remedy, in that order.
"""

from __future__ import annotations


class PtqError(Exception):
    """Base of every deliberate error; `exit_code` is what the command line exits with."""

    exit_code = 70


class GateError(PtqError):
    """A verification or a regression limit failed."""

    exit_code = 1


class UsageError(PtqError):
    """The call is wrong; the message says how to correct it."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe or an option has a value that cannot be."""


class CalibrationError(UsageError):
    """Samples are missing, misshapen, or not finite numbers."""


class OutputError(UsageError):
    """The result cannot be written where it was asked for."""


class ModelError(PtqError):
    """The model cannot be used."""

    exit_code = 3


class InvalidModelError(ModelError):
    """Not an ONNX model, or one that breaks ONNX's rules."""


class UnsafeModelError(ModelError):
    """Refused before anything else reads the file."""


class UnsupportedModelError(ModelError):
    """A valid model, but not something that ptq can do as asked."""


class MissingDependencyError(PtqError):
    """An optional package or a device is not there."""

    exit_code = 4


class BudgetError(PtqError):
    """No choice of precisions fits the budgets; says which one binds, and what would fit."""

    exit_code = 5


class InterruptedRunError(PtqError):
    """The user stopped the run; nothing half-written is left."""

    exit_code = 130
