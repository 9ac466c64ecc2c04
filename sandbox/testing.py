"""For tests and demonstrations: a sandbox inside the running process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox.server import Sandbox, running

__all__ = ["Sandbox", "running_sandbox"]


@contextmanager
def running_sandbox(
    state_dir: str | Path,
    data: str | Path | None = None,
    *,
    port: int = 0,
    token: str | None = None,
    apps: bool = False,
) -> Iterator[Sandbox]:
    """Serve a sandbox on 127.0.0.1 in a thread, and stop it when the block ends.

    Args:
        state_dir: Folder of the state; a second sandbox on it goes on where the first ended.
        data: Folder with projects in Supervisely format to import.
        port: TCP port; 0 takes a free one.
        token: The API token; the state's own if it is not given.
        apps: Start the two apps of this checkout when ``tasks.run.app`` asks for them.

    Example:
        >>> with running_sandbox(tmp_path) as sandbox:
        ...     api = supervisely.Api(sandbox.address, sandbox.token)
        ...     subprocess.run([sys.executable, "-m", "train"], env=sandbox.env(TASK_ID=1))
    """
    with running(Path(state_dir), None if data is None else Path(data), port, token, apps=apps) as sandbox:
        yield sandbox
