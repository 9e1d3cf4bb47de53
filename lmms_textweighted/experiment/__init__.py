"""The sweep: every strategy at every budget over one set of documents, and its files."""
