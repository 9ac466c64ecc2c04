"""The app's server: `python -m uvicorn train.main:app`. Importing this module calls the instance."""

from train.app import HRDATrainApp

training = HRDATrainApp()
app = training.app

if training.auto_start:
    training.start_in_thread()
