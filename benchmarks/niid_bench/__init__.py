"""NIID-Bench's protocol for many algorithms: see README.md in this folder."""
