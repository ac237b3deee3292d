"""Files as ranges of bytes, wherever they lie: disks and object storage."""
