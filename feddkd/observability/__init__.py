"""Observes a run: the communication ledger and the Prometheus metrics."""
