"""What leaves a decoder, when and how: torch and transformers only, no method's and no kind of model's name."""
