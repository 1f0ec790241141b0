"""Sources of data: files, folders, URLs and the Hub, read as rows. Start at rows.py."""
