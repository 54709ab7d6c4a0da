"""The exercises of the lessons: what a reader writes is tried beside qlab's own functions, and what is wrong is said in words."""
