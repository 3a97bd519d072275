"""netCDF files, one for each model."""
