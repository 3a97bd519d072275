"""Read a store as labelled xarray objects or as nested mappings."""
