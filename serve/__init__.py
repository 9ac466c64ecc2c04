"""The app "Serve HRDA": a trained model behind Supervisely's inference API."""
