"""The tiny base model and data that let everything run on a laptop CPU."""
