"""Greedy decoding, with transformers or vLLM."""
