"""Working on dead letters: choose, read, group, replay, discard. What the command line (and later the web desk) calls.

Everything here knows a broker by `Transport` alone, and reads bodies as the transport decodes them.
"""
