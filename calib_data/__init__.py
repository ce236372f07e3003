"""Calibration data: samples for a model from wherever they are, checked and streamed."""

from __future__ import annotations

from ptq.calib_data.calibration import Calibration
from ptq.calib_data.guess import Guess, guess_preprocess
from ptq.calib_data.lint import Lint, lint
from ptq.calib_data.preprocess import PRESETS, Preprocess, parse_preprocess
from ptq.calib_data.sources import labelled, open_calibration
from ptq.calib_data.spec import Batch, InputSpec, input_specs

__all__ = [
    "PRESETS",
    "Batch",
    "Calibration",
    "Guess",
    "InputSpec",
    "Lint",
    "Preprocess",
    "guess_preprocess",
    "input_specs",
    "labelled",
    "lint",
    "open_calibration",
    "parse_preprocess",
]
