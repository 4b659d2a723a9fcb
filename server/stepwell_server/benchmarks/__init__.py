"""The benchmarks: `stepwell bench`. Each table is a module; docs/benchmarks.md says what they measure."""
