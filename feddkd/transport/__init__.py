"""Converts tensors to chunk streams, and sends them over gRPC. Does not depend on algorithms."""
