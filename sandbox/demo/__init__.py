"""The main job end to end on one machine: projects in, trained checkpoint out, annotations back."""
