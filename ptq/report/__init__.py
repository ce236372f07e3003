"""Reports: what a run decided, what it costs, and how far it is from the float model."""
