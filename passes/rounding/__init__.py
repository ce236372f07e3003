"""The mathematics of rounding weights: arrays in, codes and scales out; no graph, no state.

Conventions, everywhere: w is [rows, K] with one row an output channel, Gram matrices are
[groups, K, K] (see `layer_error`), scale and zero_point are [rows], codes are [rows, K] uint8.
"""

from ptq.passes.rounding.coordinate import coordinate_descent
from ptq.passes.rounding.curvature import Curvature
from ptq.passes.rounding.error_feedback import Factor, Feedback, feed_back, gptq
from ptq.passes.rounding.exponent_search import candidate_grids, shape_errors
from ptq.passes.rounding.flip import squant
from ptq.passes.rounding.layer_error import damped, row_errors
from ptq.passes.rounding.output_correction import affine, bias_shift, target_weight
from ptq.passes.rounding.range_search import capped_codes, search_scales
from ptq.passes.rounding.refit import refine, refit_scale

__all__ = [
    "Curvature",
    "Factor",
    "Feedback",
    "affine",
    "bias_shift",
    "candidate_grids",
    "capped_codes",
    "coordinate_descent",
    "damped",
    "feed_back",
    "gptq",
    "refine",
    "refit_scale",
    "row_errors",
    "search_scales",
    "shape_errors",
    "squant",
    "target_weight",
]
