"""Encode tensors into fewer bytes: codecs, and models that server and clients hold alike."""
