"""What Stepwell costs beside what cannot be beaten and what people use instead; see docs/benchmarks.md."""
