"""Products with weights of 4 to 8 bits in blocks, and a decoder's whole step made of them."""
