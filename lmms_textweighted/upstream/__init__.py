"""What this project needs of other packages: which versions, and which of their names that nobody promises."""
