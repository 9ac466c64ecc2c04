"""The cards of the page: subclasses of the SDK's, which the app puts in their place."""
