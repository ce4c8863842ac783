"""What a finished run can show for itself: one page, and its tables beside it."""
