"""Learning tasks: how targets are read, what the loss is, how teachers are followed, and what is measured.

One file is one task, and registers itself with its settings (`feddkd.registry.TASKS`).
"""
