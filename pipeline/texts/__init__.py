"""Where text comes from: files and folders, Hub datasets, and the standard library's own documentation."""
