"""Measurements of KIVLA beside its alternatives. `python -m benchmarks`; see README.md."""
