"""The Python interface: run a federation and read its record. `feddkd` itself exports the public names."""
