"""Sending more than one message at a time."""
