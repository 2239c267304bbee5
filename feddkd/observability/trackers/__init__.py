"""Sends the numbers of a run to trackers of experiments, one module for each."""
