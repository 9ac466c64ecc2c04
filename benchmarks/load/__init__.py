"""Load test of the serving app; see `__main__`."""
