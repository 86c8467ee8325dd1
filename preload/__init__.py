"""The `preload` command: warms datasets and images on chosen nodes before a campaign."""
