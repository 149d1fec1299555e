"""Removing neurons of feed-forward layers."""
