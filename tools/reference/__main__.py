"""`python -m tools.reference DIRECTORY` writes the reference there, as `make docs` does. Needs PyTorch and JAX."""

import sys
from pathlib import Path

from tools.reference.pages import write


def main() -> None:
    """Write the pages to the directory that is named, or say how to."""
    if len(sys.argv) != 2:
        sys.exit(f"got {len(sys.argv) - 1} arguments, expected one: the directory to write to")
    write(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
