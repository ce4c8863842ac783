"""Images built and called as organisers call them; not part of the tests that pytest runs."""
