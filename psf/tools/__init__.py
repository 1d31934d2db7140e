"""Applications over the package: each checks, converts or measures something for a user."""
