"""Files that a run writes: folder, logs, provenance, results, report."""
