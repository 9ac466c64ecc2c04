"""`python -m sandbox.demo.apps`: Train HRDA and Serve HRDA in the browser, on generated photos and a local instance."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sandbox.demo.ending import ended_by_signals, ending_at_once

# All else takes seconds to import: not here, for the sake of Ctrl-C in the first of them.


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.demo.apps", description=__doc__)
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/apps"), help="default: %(default)s")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run until Ctrl-C, or another signal that asks for the end; 2 with a sentence when it could not."""
    ending_at_once()
    given = parse(arguments)
    print("Starting Train HRDA and Serve HRDA on a local instance.", flush=True)
    from sandbox.demo.both_apps import serve_both
    from sandbox.demo.processes import DemoError
    from sandbox.importer import ImportFailed

    try:
        with ended_by_signals():
            serve_both(given.out)
    except KeyboardInterrupt:
        print("Ended.", flush=True)
    except (DemoError, ImportFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
