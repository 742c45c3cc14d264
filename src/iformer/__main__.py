"""Entry point of `python -m iformer`."""

import sys

from iformer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
