"""A run from beginning to end, and many of them."""
