"""Repository context: snippets of other files, their index and cache, in training and the benchmark."""
