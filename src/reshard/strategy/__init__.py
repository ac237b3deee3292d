"""Strategy files: readers and writers of layouts."""
