"""What the hardware wants: the only package that asks which hardware this is."""
