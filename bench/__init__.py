"""Benchmarks: ``python -m bench NAME [--quick]`` prints one JSON line; see ``harness``."""
