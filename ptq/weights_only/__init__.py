"""Weights of few bits under activations in floats: what large language models are served with.

The one way through ptq whose result computes in floats, and only where it is asked for by name.
"""

from ptq.weights_only.quantize import quantize_weights
from ptq.weights_only.result import WeightsResult

__all__ = ["WeightsResult", "quantize_weights"]
