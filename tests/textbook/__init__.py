"""Optimizers as a textbook prints them: plain NumPy loops, one tensor, no framework.

Written from the catalogue and checked against PyTorch, optax and Keras; they share no code with the server, so that the
two agreeing means something. `optimizers` holds the loops, `cases` the hyperparameters to try them with.
"""
