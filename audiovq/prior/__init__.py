"""Pure networks, codes → logits."""
