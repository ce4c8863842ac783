"""From a scan to the probabilities of its tumour regions: preprocess, networks, tiles, engines, ensemble."""
