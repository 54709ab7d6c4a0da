"""The titles of the lessons' figures, a file a lesson: each states what was measured, and says the opposite where that came out."""
