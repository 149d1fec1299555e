"""What a model is worth: perplexity by named protocols."""
