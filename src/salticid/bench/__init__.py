"""Speed and memory, of ours and of others on the same weights, prompt and threads. Nothing here is needed to use a model."""
