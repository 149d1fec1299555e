"""Running a model block by block over a calibration set."""
