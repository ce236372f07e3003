"""A user's own measure, from file.py:function."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ptq.errors import UsageError
from ptq.mixed.points import Metric, Predict


def load_metric(text: str) -> Metric:
    """`file.py:function`: the function takes `predict` and returns a fraction; 1 is perfect.

    predict(batch) runs the network on a dict of float inputs and returns a dict of float outputs.

    Raises:
        UsageError: no such file or function, or it raises, or it returns no number.
    """
    path, _, name = text.rpartition(":")
    spec = importlib.util.spec_from_file_location(f"ptq_metric_{Path(path).stem}", path)
    if not Path(path).is_file() or spec is None or spec.loader is None:
        raise UsageError(f"--metric {text}: no such Python file; write file.py:function")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        function = getattr(module, name)
    except Exception as error:
        raise UsageError(f"--metric {text}: {type(error).__name__}: {error}") from error

    def metric(predict: Predict) -> float:
        try:
            return float(function(predict))
        except Exception as error:
            raise UsageError(f"--metric {text}: {type(error).__name__}: {error}") from error

    return metric
