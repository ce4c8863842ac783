"""Rebuilds every artefact that a bundle carries; shares each step's code with `inference`."""
