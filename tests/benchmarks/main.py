"""Prints the benchmark tables: `make bench`, or `python tests/benchmarks/main.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started as a file, Python looks for modules beside it; they are imported as tests.benchmarks.<module>.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from tests.benchmarks.command import main

    main()
