"""Optimizers as a textbook prints them: plain NumPy loops, no framework.

Written from the catalogue and checked against PyTorch, optax and Keras; they share no code with the server, so that the
two agreeing means something. `optimizers` is the table of the loops, `cases` that of the rows to try them with; the
modules of both are named after the frameworks whose forms they have, and `common` has what several share.
"""
