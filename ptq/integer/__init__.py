"""The integer program: the one meaning of a quantised network, and its numpy reference."""
