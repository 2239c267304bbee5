"""Ways to carry out an exchange: in process, and over gRPC. The same configuration gives the same bits on each."""
