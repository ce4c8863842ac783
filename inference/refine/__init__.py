"""From labels as predicted to the final labels: radiomic features, tumour subtype, clean-up."""
