"""`python -m glimmer`: the command, where a launcher wants a module (torchrun -m glimmer ...)."""

import sys

from glimmer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
