"""Which tokens stayed: a picture and a question under several strategies."""
