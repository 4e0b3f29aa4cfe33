"""How messages move: one folder per kind of broker, behind the interface in `base.py`."""
