"""Products with weights of 4 to 8 bits in blocks, and a decoder's whole pass made of them.

In reading order:
- layout: the formats, and how a matrix of one lies in memory.
- packing: rounds matrices to a format, and puts numbers into the layout and takes them out.
- linear: the modules of a decoder, the factory that makes them, and where it is used.
- kernel: the product, in torch until there is machine code.
- tiles/: the vector instructions for some rows and one panel, and for attention.
- panels: the tiles as machine code.
- compiled/: the product of any number of rows, and a decoder's whole pass, as machine code.
- tables: what that pass reads and where it writes.
- semaphore: what threads sleep on, for machine code.
- decoder_step: the pass as a decoder's step, and the threads.

Invariants:
- What a GGUF file holds in blocks is only moved: its numbers and scales stay what they are.
- A product is the same, bit for bit, on every CPU, with any number of threads and of rows beside.
- A pass gives a row the same, bit for bit, in a step as in a prefill, with any number of threads.
"""
