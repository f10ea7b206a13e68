"""What models are evaluated on: sets of examples, and their answers."""
