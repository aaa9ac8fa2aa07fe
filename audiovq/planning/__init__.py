"""Memory, hours and disk that a recipe takes, before it is trained."""
