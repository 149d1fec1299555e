"""Finished folders side by side."""
