"""`.pt` files of one tensor `feats` (stimulus, layer, unit)."""
