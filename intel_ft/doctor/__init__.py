"""What this machine and its software can do, and what is wrong with them: read `examine.py` first;
called from cli.doctor. Nothing here needs torch or any other package to be whole.

Facts by domain (host, instructions, products, runtime, software), then findings, which are pure
functions of facts, then the screen.
"""
