"""Memory and hours that a recipe takes, before it is trained."""
