"""Removing whole decoder blocks."""
