"""`python -m allosr2`: the same as the command `allosr2`."""

from allosr2.cli import run

if __name__ == "__main__":
    run()
