"""The app's server: `python -m uvicorn train.main:app`. Importing this module calls the instance."""

from common.assets import use_assets
from train.app import HRDATrainApp

training = HRDATrainApp()
app = training.app
use_assets(app.get_server())

if training.auto_start:
    training.start_in_thread()
