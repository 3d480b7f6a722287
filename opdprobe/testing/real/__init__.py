"""A second world: word problems in English for a pre-trained language model, and its zoo."""
