"""Model -> stimulus -> layer, in a store and in an HDF5 file."""
