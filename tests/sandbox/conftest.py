"""A running sandbox, shared by the tests of one module, and the SDK's client for it."""

from collections.abc import Iterator

import pytest
import supervisely as sly

from sandbox.testing import Sandbox, running_sandbox


@pytest.fixture(scope="module", autouse=True)
def _direct_connections() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERVISELY_SKIP_HTTPS_USER_HELPER_CHECK", "true")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("SUPERVISELY_PUBLIC_API_RETRIES", "1")
        yield


@pytest.fixture(scope="module", autouse=True)
def _log_level_kept() -> Iterator[None]:
    # The demo makes the SDK quiet, whose log other tests read.
    level = sly.logger.level
    yield
    sly.logger.setLevel(level)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with running_sandbox(tmp_path_factory.mktemp("state")) as running:
        yield running


@pytest.fixture(scope="module")
def api(sandbox: Sandbox) -> sly.Api:
    return sly.Api(sandbox.address, sandbox.token, ignore_task_id=True)
