"""Generated from proto/stepwell/v1 by `make proto`; not to be edited."""
