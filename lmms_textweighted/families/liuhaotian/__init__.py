"""Checkpoints in liuhaotian format, the original `llava` package's: read with that package or without it."""
