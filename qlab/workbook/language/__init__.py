"""Other languages than English: which there are, which is spoken, and lessons and messages in it."""
