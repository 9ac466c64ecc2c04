"""Does adaptation help? Arms that differ in one thing each, on photos that no choice was made on."""
