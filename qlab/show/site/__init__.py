"""Pages: the report as a small static site, and what `qlab lab` opens on. Everything a page needs is in its file."""
