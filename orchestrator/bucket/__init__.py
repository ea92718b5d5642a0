"""Storage that is a bucket: what is mirrored there, and how it comes back."""
