"""`python -m reliq.demo`: the demo without the rest of the command line."""

from .command import command

if __name__ == "__main__":
    command(prog_name="python -m reliq.demo")
