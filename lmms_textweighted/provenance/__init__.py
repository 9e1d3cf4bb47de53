"""What a result was made by: software, checkpoint, settings. A result says it, a journal is held against it."""
