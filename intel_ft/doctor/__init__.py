"""`intel-ft doctor`: what this machine and its software can do, and what is wrong with them.

Start reading at `examine.py`. It collects facts by domain (host, instructions, gemm_kernels,
runtime, software), derives findings from them (pure functions of facts), and `text.py` prints both.
Nothing here needs a working installation of torch or of any other package.
"""
