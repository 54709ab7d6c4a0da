"""Where the jobs of a sweep run: processes of this machine, or machines of a Ray cluster, behind one interface."""
