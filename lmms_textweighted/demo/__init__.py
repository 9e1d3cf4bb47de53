"""A local page to try a picture and a question."""
