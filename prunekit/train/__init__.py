"""Training a pruned model towards the dense one."""
