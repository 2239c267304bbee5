"""The networks that can be trained by name."""
