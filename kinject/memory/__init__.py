"""Passage memories: what they look like on disk, how they are edited, and how the nearest passages are found."""
