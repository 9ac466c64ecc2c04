"""`python -m sandbox.demo`: the main job end to end, and what adaptation gained over its two baselines."""

import sys

from common.processors import share_processors
from sandbox.demo.ending import ending_at_once

if __name__ == "__main__":
    # All else takes seconds to import, in the first of which Ctrl-C should be no traceback either.
    ending_at_once()
    share_processors()
    from sandbox.demo.demonstration import main

    sys.exit(main())
