"""Benchmarks that anyone can run with `feddkd bench`: speed as a ratio to a reference measured in the same run."""
