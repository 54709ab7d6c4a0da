"""What a lesson holds beside a model at rest, on the disk rather than on the device: statistics, and weights that were changed."""
