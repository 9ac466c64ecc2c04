"""The app's server: `python -m uvicorn train.main:app`. Importing this module calls the instance."""

import threading

from common.allocator import share_arenas
from common.processors import share_processors

share_processors()
share_arenas()

from supervisely import is_production
from supervisely.app import StateJson

from common.web.answers import answer_all_errors, answer_error
from common.web.assets import use_assets
from common.web.door import Door
from common.web.doorkeeper import Doorkeeper
from common.web.health import add_liveness
from common.web.routes import TRAIN, routes_of
from common.web.settings import DoorSettings
from train.app import HRDATrainApp

settings = DoorSettings.from_environment(others_too=True)
training = HRDATrainApp()
add_liveness(training.server, "production" if is_production() else "development", training.trouble)
answer_all_errors(training.server, answer_error)
use_assets(training.server)
app = Doorkeeper(training.server, Door(routes_of(TRAIN), settings), settings, StateJson)
if threading.current_thread() is threading.main_thread():
    training.leaving.install()

if training.auto_start:
    training.start_in_thread()
