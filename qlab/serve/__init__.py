"""From an artifact to a server that has answered: runtimes, their files, proof and load. No arithmetic of the planner."""
