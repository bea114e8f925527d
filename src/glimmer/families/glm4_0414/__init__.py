"""GLM-4-0414 and GLM-Z1: GLM-4 with a second pair of norms in each layer."""
