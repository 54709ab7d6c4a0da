"""From an artifact to a server: planning, choosing, recipes for runtimes, and a server that really answers."""
