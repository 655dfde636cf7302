"""The formats of weights, a module each."""
