"""Running the float model."""
