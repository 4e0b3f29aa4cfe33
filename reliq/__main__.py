"""`python -m reliq`: the same as the command `reliq`."""

from .cli import main

if __name__ == "__main__":
    main()
