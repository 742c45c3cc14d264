"""What a run writes: folder, logs, provenance, results, report."""
