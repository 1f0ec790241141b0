"""Products of frozen matrices with their layouts, compiled for this CPU, and the CPU's own limit.

Start with tiles.py (AMX, bf16 and int8) and vnni.py (AVX512-VNNI, int8), which describe their
products; tile_product.cpp and vnni_product.cpp compute them. narrow.py has LoRA's products on AMX,
library.py tells which of all these this process can use, register_rate.py how fast the instructions
are by themselves.
"""
