"""Where methods look: what kept tokens follow besides content."""
