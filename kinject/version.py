"""The version, in its one place: setup.py, manifests and `kinject --version` read it here."""

__version__ = "0.1.0"
