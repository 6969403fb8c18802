"""The style sheet of reports: light and dark, from 320 pixels on."""

TEXT = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1d2330; --soft: #5d6675; --edge: #dde1e8; --box: #f6f7f9;
  --warm: #57b894;
  --c0: #1f6fd1; --c1: #d1622b; --c2: #2a8f5b; --c3: #b0357f;
  --c4: #8a6d00; --c5: #6a4fc4; --c6: #00849b; --c7: #8b5a44;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171d; --text: #e4e7ec; --soft: #9aa4b2; --edge: #323945; --box: #1c2028;
    --warm: #1c7a5c;
    --c0: #6aa9f7; --c1: #f2975f; --c2: #5fc98f; --c3: #e981bd;
    --c4: #d9bb4a; --c5: #ab98f5; --c6: #4fc3d9; --c7: #cda08a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.2rem clamp(.8rem, 3vw, 2.2rem); max-width: 1400px;
  background: var(--page); color: var(--text);
  overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif;
}
h1 { font-size: 1.5rem; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .8rem; padding-bottom: .3rem;
     border-bottom: 1px solid var(--edge); }
h3 { font-size: 1rem; margin: 1.4rem 0 .6rem; }
h4 { font-size: 1rem; margin: 0 0 .5rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
a { color: var(--c0); }
footer { margin-top: 2.5rem; color: var(--soft); font-size: .85rem; }
.grid { display: grid; gap: 1rem;
        grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
figure, article { margin: 0; min-width: 0; }
.grid > * { background: var(--box); border: 1px solid var(--edge); border-radius: 8px;
            padding: .7rem .8rem; }
figure.wide { margin-bottom: 1.4rem; }
figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .4rem; }
figure > svg { display: block; width: 100%; height: auto; }
.grid figure > svg { max-width: 560px; }
line.grid { stroke: var(--edge); }
line.axis { stroke: var(--soft); }
text.tick { fill: var(--soft); font-size: 11px; text-anchor: middle; }
text.up { text-anchor: end; }
path.line { fill: none; stroke: currentColor; stroke-width: 1.8;
            stroke-linejoin: round; }
circle { fill: currentColor; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.c6 { color: var(--c6); } .c7 { color: var(--c7); }
.d1 { stroke-dasharray: 6 3; } .d2 { stroke-dasharray: 2 3; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; list-style: none;
          margin: .5rem 0 0; padding: 0; font-size: .8rem; color: var(--soft); }
.legend b { color: var(--text); font-weight: 600; }
.sample { width: 18px; height: 10px; margin-right: .35rem; vertical-align: middle; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: separate; border-spacing: 2px; font-size: .85rem;
        font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .5rem; text-align: right; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { position: sticky; left: 0; background: var(--page); text-align: left;
           font-weight: 500; max-width: 45vw; overflow: hidden;
           text-overflow: ellipsis; }
table:not(.heat) td { border-bottom: 1px solid var(--edge); }
.heat td { border-radius: 4px; min-width: 3rem; }
.heat td[style], .term {
  background: color-mix(in srgb, var(--warm) calc(var(--heat) * 85%), var(--box)); }
.fields td, .fields thead th { text-align: left; }
code { font: .8rem ui-monospace, "DejaVu Sans Mono", monospace; }
article p { margin: .35rem 0; }
article ol { margin: .5rem 0; padding-left: 1.6rem; }
.view, .lang { color: var(--soft); font-size: .8rem; }
.lang { border: 1px solid var(--edge); border-radius: 4px; padding: 0 .35rem; }
.term { display: inline-block; border-radius: 4px; padding: 0 .4rem;
        margin: 0 .25rem .25rem 0; max-width: 100%; }
.term small { opacity: .75; }
.right { font-weight: 600; }
.right span { color: var(--c2); }
"""
