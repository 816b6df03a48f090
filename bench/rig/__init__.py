"""What the benchmarks share: servers to measure, the load on them, and the report."""
