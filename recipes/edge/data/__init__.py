"""Data: from users' rows and clips to packed rows of samples."""
