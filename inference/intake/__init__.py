"""Intake: find the cases of a folder, read, check and repair their scans, and write results back in their geometry."""
