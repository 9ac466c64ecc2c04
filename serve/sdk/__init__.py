"""Where Supervisely's SDK is bent: the only package of the app that touches private names of it."""
