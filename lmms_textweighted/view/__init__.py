"""One document as a person sees it: the picture as the model saw it, where its image tokens stand, what stayed, why."""
