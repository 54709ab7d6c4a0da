"""What qlab does on disks: one process at a time in a folder, temporary folders that are swept, and what a full disk is called."""
