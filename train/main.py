"""The app's server: `python -m uvicorn train.main:app`. Importing this module calls the instance."""

import threading

from common.assets import use_assets
from train.app import HRDATrainApp

training = HRDATrainApp()
app = training.app
use_assets(app.get_server())
if threading.current_thread() is threading.main_thread():
    training.leaving.install()

if training.auto_start:
    training.start_in_thread()
