"""Commands for model files and weights."""
