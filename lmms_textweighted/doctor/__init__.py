"""What a run needs, looked at piece by piece: what is there, what is wrong, and what to do about it."""
