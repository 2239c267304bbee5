"""What can be seen of a run: the communication ledger and the Prometheus metrics."""
