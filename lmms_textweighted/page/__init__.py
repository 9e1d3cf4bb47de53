"""A single self-contained HTML file of results and documents, that opens from disk without a network."""
