"""CLIP looks at the pictures: words that fit them, their agreement with the dataset examples, search by word."""
