"""One document as a person sees it: the picture as the model saw it, where each image token stands in it, what stayed and why."""
