"""`python -m rustq` is `rustq`."""

import sys

from rustq.cli import main

sys.exit(main())
