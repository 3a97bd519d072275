"""Find activations by model, stimulus and layer, in a store or in an HDF5 file."""
