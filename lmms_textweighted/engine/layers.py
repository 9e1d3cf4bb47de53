"""What stands for a place before the decoder's layers. No torch here: files of results are read without it."""

EMBEDDINGS = -1  # the "layer" after which tokens leave before layer 0
