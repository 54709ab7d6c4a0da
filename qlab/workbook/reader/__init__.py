"""What a reader has of the lessons: what each is about, copies to work on, progress, the glossary."""
