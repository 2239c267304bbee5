"""A page that shows a run as it goes on."""
