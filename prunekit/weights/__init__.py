"""Pruning single weights: masks, sparsity budgets, optimal brain surgeon."""
