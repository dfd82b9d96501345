"""kinject: knowledge plugins for frozen language models, in JAX."""

__version__ = "0.1.0"
