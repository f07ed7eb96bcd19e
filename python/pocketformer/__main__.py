"""``python -m pocketformer`` is the command ``pocketformer``."""

import sys

from .cli import main

sys.exit(main())
