"""What a graphics card does with this project, in one command: see `__main__`."""
