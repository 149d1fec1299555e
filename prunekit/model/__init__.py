"""A model on disk and in memory: its files, its structure, its parts."""
