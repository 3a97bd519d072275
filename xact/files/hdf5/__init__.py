"""HDF5 files `/model/stimulus/layer`."""
