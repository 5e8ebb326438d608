"""The demo, and the measurements behind docs/benchmarks.md."""
