"""Results on disk: what is kept of a measurement, under which conditions, and how it is shown."""
