"""Decisions without I/O: how long to wait, what may be tried again, who may run.

Callers: `middleware/` asks, `transport/` and `stores/` carry the answer out. Nothing here imports those
rooms.
Guarantee: clock and chance are arguments, so every decision can be replayed in a test by a table row.
"""
