"""The written model folder: staging, weights, manifest, card, verification, upload."""
