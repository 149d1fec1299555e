"""Spectra of weight matrices and the power laws fitted to them."""
