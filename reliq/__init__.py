"""Reliability for Dramatiq on any broker."""
