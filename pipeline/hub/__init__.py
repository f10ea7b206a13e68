"""The Hugging Face hub: its client, commits, and the search for secrets before anything is published."""
