"""The product against frameworks that we did not write. Needs them installed; runs in a target of its own."""
