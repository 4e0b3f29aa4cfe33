"""`reliq demo`: one app, run side by side on plain Dramatiq and with reliq, through the same faults.

Callers: the command line (`command`), `python -m reliq.demo`. Nothing else of reliq knows this room.
Guarantee: needs no server and no account, listens on 127.0.0.1 only, and leaves no process and no file behind.
"""
