"""``python -m sandbox``: serve a sandbox until it is interrupted."""

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

from common.ports import port
from sandbox.importer import ImportFailed
from sandbox.server import Sandbox, running


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox",
        description="A local stand-in for a Supervisely instance, for trying and testing the apps. "
        "Prints SERVER_ADDRESS=, API_TOKEN=, TEAM_ID= and WORKSPACE_ID= lines for the apps' environment.",
    )
    parser.add_argument("--data", type=Path, help="folder with projects in Supervisely format to import")
    parser.add_argument("--port", type=port, default=0, help="port on 127.0.0.1 (default: 0, a free one)")
    parser.add_argument(
        "--state", type=Path, default=Path("runs/sandbox"), help="folder of the state (default: %(default)s)"
    )
    parser.add_argument("--token", help="API token (default: the last run's, or a new one)")
    parser.add_argument(
        "--apps", action="store_true", help="start Train HRDA and Serve HRDA when a client asks for them by their API"
    )
    return parser.parse_args()


def _announce(sandbox: Sandbox, state: Path) -> None:
    print(f"SERVER_ADDRESS={sandbox.address}")
    print(f"API_TOKEN={sandbox.token}")
    print(f"TEAM_ID={sandbox.team_id}")
    print(f"WORKSPACE_ID={sandbox.workspace_id}")
    for project in sandbox.imported:
        what = f"{project.images} images" if project.images else "already in the state, or empty"
        skipped = f", {project.skipped} unreadable files left out" if project.skipped else ""
        print(f"Project {project.name!r} (id {project.project_id}): {what}{skipped}.")
    print(f"The sandbox is ready at {sandbox.address}, its state is in {state}. Stop it with Ctrl+C.", flush=True)


def main() -> int:
    """Run the command line; returns the exit status."""
    arguments = _parse()
    logging.basicConfig(level=logging.INFO, format="sandbox: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        with running(arguments.state, arguments.data, arguments.port, arguments.token, apps=arguments.apps) as sandbox:
            _announce(sandbox, arguments.state)
            stopped.wait()
    except (ImportFailed, OSError) as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
