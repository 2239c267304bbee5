"""Examples, the data sets they come from, and the rules that deal them to clients."""
