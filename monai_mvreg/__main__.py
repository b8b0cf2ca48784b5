"""``python -m monai_mvreg``: the command line ``mvreg``."""

import sys

from monai_mvreg.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
