"""Several processes of one run: who they are, what they share, and who notices that one is gone."""
