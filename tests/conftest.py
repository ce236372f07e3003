"""What holds for every test."""

from hypothesis import settings

# A busy machine is no failure: tests assert no time, examples no more than others.
settings.register_profile("ptq", deadline=None)
settings.load_profile("ptq")
