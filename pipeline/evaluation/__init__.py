"""Stage 5: the base and the fine-tuned model compared."""
