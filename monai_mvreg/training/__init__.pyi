"""Training: batches of patients with different numbers of scans."""

from .batches import collate_scans as collate_scans
