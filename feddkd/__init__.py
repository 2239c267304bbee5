"""feddkd: federated learning with decentralized knowledge distillation, measured byte by byte."""

__version__ = "0.1.0"
