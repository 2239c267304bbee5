"""Runs rounds: cohorts, sequences of exchanges, quorums, and their records."""
