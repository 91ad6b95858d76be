"""`python -m allosr2`: the same as the command `allosr2`."""

import sys

from allosr2.cli import main

if __name__ == "__main__":
    sys.exit(main())
