"""One number per patient from all of that patient's scans: a plugin package for MONAI."""
