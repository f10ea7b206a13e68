"""A base or fine-tuned model: its files, tokenizer, weights and device, and what can be merged."""
