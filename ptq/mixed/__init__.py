"""Mixed precision: choose the width of every tensor within budgets, and measure what was chosen.

study       the network and its samples, read once
rounding    rounded weights of every layer and width, kept in a work folder
costs       what each width of each layer costs
latency     what each layer takes on this machine
choose      scores and costs -> an allocation
points      an allocation -> a quantised network, measured on held-out samples
budgets     the best network within them
promote     the layers that cost most, measured, get more bits
explore     the Pareto front
within      `ptq.quantize` with budgets
"""
