"""The report of a quantised model as one page: its content, its charts, and its three forms."""
