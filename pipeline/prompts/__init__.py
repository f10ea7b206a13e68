"""How a place in a file becomes what a model reads: context, FIM formats, repository context."""
