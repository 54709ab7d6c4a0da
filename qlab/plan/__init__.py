"""The planner: memory, capacity and speed by arithmetic. No process is started here."""
