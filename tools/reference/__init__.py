"""The API reference in HTML: the Python SDK's from its docstrings, by pdoc, the contract's from its comments."""
