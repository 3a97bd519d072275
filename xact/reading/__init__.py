"""Store -> labelled xarray, and nested mappings."""
