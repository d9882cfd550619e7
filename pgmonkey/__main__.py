"""``python -m pgmonkey``: the same as the command ``pgmonkey``."""

import sys

from .cli import main

sys.exit(main())
