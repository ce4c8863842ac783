"""What a run tells about itself: its record, figures and page."""
