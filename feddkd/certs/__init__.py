"""Makes and reads the certificates of a federation: a CA, those that it signs, and its list of revoked ones."""
