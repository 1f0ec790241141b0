"""The style sheet of a report: light, dark and on paper; called from insight.report."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6470; --paper: #ffffff;
  --rule: #d7dce2; --note: #fff4d6; --c0: #0060a8; --c1: #c44601; --c2: #00795c; --c3: #a03d82;
  --c4: #8a6d00; --c5: #4b5bd0; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a3abb5; --paper: #16191d; --rule: #363c44; --note: #3d3315;
    --c0: #5db3f5; --c1: #ff9453; --c2: #3ecfa6; --c3: #e58bc9; --c4: #e3c14c; --c5: #a0aaff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 1.8rem 0 .5rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; overflow-wrap: anywhere; }
.legend span { margin-right: 1.2rem; white-space: nowrap; }
.chip { width: 2rem; height: .6rem; }
.missing { background: var(--note); padding: .6rem .6rem .6rem 1.8rem; margin: .6rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0; max-width: 40rem;
  border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; }
td:first-child { color: var(--soft); min-width: 12rem; }
.samples td { white-space: pre-wrap; font-size: .85rem; }
pre { background: color-mix(in srgb, var(--rule) 35%, var(--paper)); padding: .8rem;
  overflow-x: auto; font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  gap: 1rem; }
figure { margin: 0; break-inside: avoid; }
svg { width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; }
svg .title { fill: var(--ink); font-size: 13px; font-weight: 600; }
.grid { stroke: var(--rule); fill: none; }
.level { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.dot { fill: none; stroke-width: 6; stroke-linecap: round; }
.line.c0, .dot.c0 { stroke: var(--c0); } .bar.c0 { fill: var(--c0); }
.line.c1, .dot.c1 { stroke: var(--c1); } .bar.c1 { fill: var(--c1); }
.line.c2, .dot.c2 { stroke: var(--c2); } .bar.c2 { fill: var(--c2); }
.line.c3, .dot.c3 { stroke: var(--c3); } .bar.c3 { fill: var(--c3); }
.line.c4, .dot.c4 { stroke: var(--c4); } .bar.c4 { fill: var(--c4); }
.line.c5, .dot.c5 { stroke: var(--c5); } .bar.c5 { fill: var(--c5); }
.line.c1 { stroke-dasharray: 7 3; } .line.c2 { stroke-dasharray: 2 3; }
.line.c3 { stroke-dasharray: 9 3 2 3; } .line.c4 { stroke-dasharray: 12 4; }
.line.c5 { stroke-dasharray: 4 2; }
@media print {
  @page { margin: 14mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .charts { grid-template-columns: 1fr 1fr; gap: 4mm; }
  h2, h3 { break-after: avoid; } tr { break-inside: avoid; }
  .wide, pre { overflow: visible; }
  .missing, .bar { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
