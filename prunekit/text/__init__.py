"""Text from names, files and the hub, as token sequences for calibration and evaluation."""
