"""Train a sparse autoencoder on a model's own activations."""
