"""The card of a running training alone, told of a run by requests: `python -m uvicorn progress:app`."""

import os
import threading
from pathlib import Path

import supervisely as sly
from fastapi import Request, Response
from supervisely.app.widgets import Container, Text

from common.web.assets import use_assets
from train.page.history import RunHistory
from train.page.monitor import Monitor, MonitorCard
from train.run.state import TrainingState, decode

status = Text("", widget_id="status")
card = MonitorCard({})
card.card.unlock()
application = sly.Application(layout=Container([status, card.card], widget_id="layout"))
app = application.get_server()
use_assets(app)
runs: list[tuple[Monitor, TrainingState]] = []


def show_status(sentence: str, kind: str) -> None:
    status.set(sentence, kind)


@app.post("/begin")
def begin() -> None:
    """A run begins in the same folder; what ran before has crashed."""
    monitor, state = Monitor(card, show_status, threading.Event(), RunHistory(Path(os.environ["RUN"]))), TrainingState()
    if runs:
        runs[-1][0].__exit__(None, None, None)
    runs.append((monitor.__enter__(), state))
    state.subscribe(monitor)


@app.post("/change")
async def change(request: Request) -> None:
    """The run changes as a line of JSON says."""
    runs[-1][1].apply(decode((await request.body()).decode()))


@app.get("/previews/{iteration}/{name}")
def picture(iteration: str, name: str) -> Response:
    """What a run would have drawn."""
    return Response('<svg xmlns="http://www.w3.org/2000/svg" width="96" height="64"/>', media_type="image/svg+xml")
