"""What learned rounding is made of. Only `learn_rounding` uses this: it imports torch."""
