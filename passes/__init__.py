"""Passes: rewrites that prepare the float graph, and plan passes that decide its quantisation.

A plan pass is a frozen dataclass whose fields are recipe keys; called with a context and a plan, it
returns a new plan and leaves the float graph alone. `ptq.pipeline` knows their order.
"""
