"""Tensors to chunk streams, and the gRPC server and client that carry them. Knows nothing of algorithms."""
