"""Models on disks and hubs: where they are found, what travels."""
