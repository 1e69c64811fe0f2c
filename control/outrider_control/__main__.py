"""`python -m outrider_control` is `outrider-control`."""

import sys

from outrider_control.app import main

sys.exit(main())
