"""Fill in the middle (FIM): spans, training examples, and the benchmark's set."""
