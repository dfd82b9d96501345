"""Seeded faults put into every kind of file that kinject writes: what is read must be right, or refused in one line."""
