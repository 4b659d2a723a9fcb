"""Settings of all tests."""

from hypothesis import settings

# Speed is for benchmarks: on a loaded machine an example may take any time.
settings.register_profile("stepwell", deadline=None)
settings.load_profile("stepwell")
