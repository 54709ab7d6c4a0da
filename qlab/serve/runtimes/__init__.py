"""The runtimes: what each serves, how it is started, and the files that it wants."""
