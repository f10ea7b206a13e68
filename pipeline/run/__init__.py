"""What every stage needs to run: settings, exit codes, errors, progress, outputs, manifests, lineage."""
