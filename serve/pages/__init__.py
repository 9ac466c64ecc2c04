"""Pages of the service's own, beside the one that the SDK makes of widgets: nothing in them comes from elsewhere."""
