"""Families of encoders, a file each; `kinject.models.family` finds them by name."""
